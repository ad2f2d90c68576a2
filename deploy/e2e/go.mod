module github.com/nightjar-edr/nightjar/deploy/e2e

go 1.26.0

require github.com/nightjar-edr/nightjar/pkg v0.0.0

replace github.com/nightjar-edr/nightjar/pkg => ../../pkg
