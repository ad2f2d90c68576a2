package canary

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// commandName is the name of the canary's commands. It is no program: nobody
// executes them.
const commandName = "nightjar-canary"

// command is what the APIs show of a command.
type command struct {
	UUID      string   `json:"uuid"`
	Name      string   `json:"name"`
	Args      []string `json:"args"`
	Stdout    string   `json:"stdout"`
	Error     string   `json:"error"`
	Completed bool     `json:"completed"`
}

// is tells whether the command is that of a round.
func (c *command) is(nonce string) bool {
	return c.Name == commandName && len(c.Args) == 1 && c.Args[0] == nonce
}

// queue queues a command for the canary's endpoint and returns its id.
func (s *Service) queue(ctx context.Context, nonce string) (string, error) {
	body, err := json.Marshal(map[string]any{"command-line": commandName + " " + nonce, "timeout": s.cfg.Timeout.String()})
	if err != nil {
		return "", err
	}
	var shown struct {
		Command command `json:"command"`
	}
	if err := s.api.ask(ctx, http.MethodPost, "/endpoints/"+s.me.UUID+"/command", string(body), &shown); err != nil {
		return "", err
	}
	if c := &shown.Command; c.UUID == "" || !c.is(nonce) {
		return "", failed(reasonWrong, "queued is the command %s %q with id %q", c.Name, c.Args, c.UUID)
	}
	return shown.Command.UUID, nil
}

// fetch polls as the endpoint until it is given the command. One of an earlier
// round that comes first is ended.
func (s *Service) fetch(ctx context.Context, id, nonce string) error {
	return s.poll(ctx, func(ctx context.Context) error {
		for {
			status, text, err := s.api.send(ctx, s.me, http.MethodGet, "/commands", nil, http.StatusOK, http.StatusNoContent)
			if err != nil {
				return err
			}
			if status == http.StatusNoContent {
				return failed(reasonTimeout, "the endpoint is given no command")
			}
			var c command
			switch err := json.Unmarshal(text, &c); {
			case err != nil:
				return failed(reasonWrong, "command: %w", err)
			case c.UUID == id && c.is(nonce):
				return nil
			case c.UUID == id || c.Name != commandName:
				return failed(reasonWrong, "the endpoint is given %s %q", c.Name, c.Args)
			}
			if err := s.answer(ctx, &c, nil, "given up by the canary"); err != nil {
				return err
			}
		}
	})
}

// answer sends the result of a command as the endpoint.
func (s *Service) answer(ctx context.Context, c *command, stdout []byte, problem string) error {
	body, err := json.Marshal(map[string]any{"uuid": c.UUID, "name": c.Name, "args": c.Args, "drop": []any{}, "fetch": map[string]any{},
		"stdout": stdout, "stderr": nil, "error": problem, "expect-json": false})
	if err != nil {
		return err
	}
	_, _, err = s.api.send(ctx, s.me, http.MethodPost, "/commands", body, http.StatusOK)
	return err
}

// result waits until the admin API shows the result.
func (s *Service) result(ctx context.Context, id, stdout string) error {
	return s.poll(ctx, func(ctx context.Context) error {
		var c command
		if err := s.api.ask(ctx, http.MethodGet, "/endpoints/"+s.me.UUID+"/commands/"+id, "", &c); err != nil {
			return err
		}
		switch {
		case !c.Completed:
			return failed(reasonTimeout, "the command is not shown as completed")
		case c.Stdout != stdout || c.Error != "":
			return failed(reasonWrong, "the command is shown with another result and error %q", c.Error)
		}
		return nil
	})
}

// cancel takes a command back that the endpoint will not fetch any more, so
// that commands do not pile up. The next round ends what is left.
func (s *Service) cancel(ctx context.Context, id string) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), min(s.cfg.Timeout, 2*time.Second))
	defer stop()
	if err := s.api.ask(ctx, http.MethodDelete, "/endpoints/"+s.me.UUID+"/command/"+id, "", nil); err != nil {
		s.cfg.Log.Debug("command not cancelled", "command", id, "error", err)
	}
}
