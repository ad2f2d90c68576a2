package gateway

import (
	"net/http"

	"github.com/gin-gonic/gin"
)

// postLogs answers 200 when every line of the body is on stable storage.
func (s *Service) postLogs(c *gin.Context, a agent) {
	zip, err := zipped(c.Request)
	if err == nil {
		err = s.ingest.receive(c.Request.Context(), sender{uuid: a.uuid, hostname: a.hostname, ip: a.ip}, c.Request.Body, zip)
	}
	if err != nil {
		plainError(c.Writer, err)
		return
	}
	c.Writer.WriteHeader(http.StatusOK)
	c.Writer.WriteHeaderNow()
}
