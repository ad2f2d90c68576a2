package monitoring

import (
	"flag"
	"path/filepath"
)

// root is that of the repository.
var root = filepath.Join("..", "..")

// rulesPattern are the files of rules.
var rulesPattern = filepath.Join("prometheus", "rules", "*.yml")

var update = flag.Bool("update", false, "write what is generated anew")
