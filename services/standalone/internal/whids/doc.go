// Package whids reads the configuration file of a WHIDS manager, as far as
// there is something in it to take over.
package whids
