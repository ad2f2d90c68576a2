//go:build full

package e2e

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"time"
)

// noisy makes the events of batch b that hardly compress, every tenth of which
// testRule matches.
func noisy(b, size int, base time.Time) (lines [][]byte) {
	random := rand.NewChaCha8([32]byte{byte(b), byte(b >> 8), byte(b >> 16)})
	noise := make([]byte, 256)
	for n := b * size; n < (b+1)*size; n++ {
		_, _ = random.Read(noise)
		image := "app.exe"
		if n%10 == 3 {
			image = "evil.exe"
		}
		lines = append(lines, fmt.Appendf(nil, `{"Event":{"EventData":{"Image":"C:\\Temp\\%s","N":"%d","Noise":"%s"},"System":{"Channel":"Microsoft-Windows-Sysmon/Operational","Computer":"WS","EventID":"1","TimeCreated":{"SystemTime":"%s"}}}}`,
			image, n, hex.EncodeToString(noise), base.Add(time.Duration(n)*time.Millisecond).UTC().Format(time.RFC3339Nano)))
	}
	return lines
}
