// Package config reads a program's settings from flags, from the environment
// (NIGHTJAR_<NAME>, dashes as underscores) and from a YAML file given by
// --config whose keys are the names of the flags. A flag beats the
// environment beats the file; a key or flag that does not exist is an error
// that names it.
package config
