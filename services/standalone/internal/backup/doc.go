// Package backup copies the record out of a running NATS server into one file
// and back into another server.
//
// The file is a tar archive: keys and certificates under files/, each stream
// under streams/<name>/ in parts, and at the end manifest.json, which says
// what the archive holds, with checksums. An archive without its manifest is
// the rest of a backup that broke off, and is refused.
//
// Streams are copied one after the other, in an order that keeps them
// consistent: what refers to something is copied before what it refers to,
// unless the other way round nothing can be missed (see streams). A stream is
// copied by JetStream's own snapshot, which begins with the positions of the
// durable consumers and goes up to the last message that was there at its
// beginning. In a bucket a key that is written meanwhile loses the message that
// the snapshot was still to read; so what came behind the snapshot is copied
// too, until there is nothing more (see tail).
//
// Badger stores are no part of a backup: they are views and are built again.
package backup
