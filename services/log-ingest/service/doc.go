// Package ingest is the service log-ingest: what happened on the endpoints.
//
// It owns the object store artifacts and no stream. It reads the streams EVENTS
// and ALERTS and folds them into its own Badger store, each through a view:
// chunks of lines by endpoint and event time, see internal/logstore. A replica
// owns all partitions of endpoints or some of them. When these change, it builds
// the new ones from the streams beside what it has, and drops the others when
// another replica says on message.LogsHeld that it holds them.
//
// It answers message.LogsQuery on edr.logs.<partition>.query for the
// partitions of which it has all: pages of an endpoint's events or alerts in the order of
// their time, those of the same time in the order of their arrival. An event
// that is also an alert is shown with its detection. Events late, early or
// out of order are all found, in memory that does not depend on how many
// there are.
//
// It answers message.ArtifactsList with the files in the object store, from an
// index over their descriptions that every replica has all of. What is stored
// when it is asked is listed. Content that never became a file is removed after
// a day.
//
// What is stored of an endpoint's hour is merged when nothing comes for it any
// more, beside everything else and without a change to any answer.
//
// It obeys removals (see package removal): of an endpoint whose stored data was
// removed it shows what came afterwards, in whatever order it learns of what, and
// it removes the artifacts from the object store.
//
// It guarantees that each event is stored once, in whatever batches and
// however much later an endpoint repeats it while it is kept; that what
// is stored agrees with the position in the stream whatever crashes when; and
// that a deleted store is built again with the same answers from what the
// streams still hold. What retention has removed from a stream is dropped, and
// its space is given back.
package ingest
