package message_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nightjar-edr/nightjar/pkg/contract/message"
)

const commandID = "5d0c1b2a-3f4e-4a6b-8c7d-9e0f1a2b3c4d"

func completedCommand() message.CommandRecord {
	return message.CommandRecord{
		Endpoint: endpoint, UUID: commandID, Order: 17, State: message.CommandCompleted, Actor: "admin",
		Name: "/usr/bin/find", Args: []string{"find", "/tmp"}, Timeout: 10 * time.Second,
		Drop:   []message.CommandFile{{UUID: "1", Name: "tool", Data: &message.CommandBlob{Data: []byte("#!"), Size: 2}}},
		Fetch:  map[string]message.CommandFile{"/a": {UUID: "2", Data: &message.CommandBlob{Object: endpoint + "/00ff", Size: 1 << 20}}, "/b": {UUID: "3", Error: "no such file"}},
		Stdout: &message.CommandBlob{Data: []byte(`{"a":1}`), Size: 7, JSON: true}, Stderr: &message.CommandBlob{},
		Error: "exit status 1", ExpectJSON: true,
		Created: received, Sent: received.Add(time.Second), Ended: received.Add(time.Minute),
	}
}

func TestCommandRecord(t *testing.T) {
	r := completedCommand()
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "command", &nats.Msg{Subject: "$KV.commands." + message.CommandKey(endpoint, commandID), Data: data}, false)
	back, err := message.DecodeCommandRecord(data, 99)
	if err != nil || !reflect.DeepEqual(back, r) {
		t.Errorf("read back %+v, %v", back, err)
	}
	first, err := json.Marshal(message.CommandRecord{Endpoint: endpoint, UUID: commandID, State: message.CommandQueued, Created: received})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "command-queued", &nats.Msg{Subject: "$KV.commands." + message.CommandKey(endpoint, commandID), Data: first}, false)
	if back, err = message.DecodeCommandRecord(first, 99); err != nil || back.Order != 99 {
		t.Errorf("the first value has order %d, %v; want its own revision", back.Order, err)
	}
	for _, bad := range []string{"", "{", `{"state":"lost"}`, `{}`, `[]`} {
		if _, err := message.DecodeCommandRecord([]byte(bad), 1); err == nil {
			t.Errorf("%q was read as a record", bad)
		}
	}
}

func TestCommandKey(t *testing.T) {
	e, c, err := message.ParseCommandKey(message.CommandKey(endpoint, commandID))
	if err != nil || e != endpoint || c != commandID {
		t.Errorf("parsed as %s %s, %v", e, c, err)
	}
	for _, key := range []string{"", ".", endpoint, endpoint + ".", endpoint + ".x", "x." + commandID, endpoint + "." + commandID + ".x"} {
		if _, _, err := message.ParseCommandKey(key); !errors.Is(err, message.ErrCommandKey) {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func TestCommandOutline(t *testing.T) {
	r := completedCommand()
	o := r.Outline()
	if !reflect.DeepEqual(r, completedCommand()) {
		t.Errorf("the command itself was changed: %+v", r)
	}
	for _, b := range o.Blobs() {
		if len(b.Data) > 0 {
			t.Errorf("the outline has a value of %d bytes", len(b.Data))
		}
	}
	if len(o.Blobs()) != len(r.Blobs()) || o.Stdout.Size != 7 || o.Drop[0].Data.Size != 2 || o.Error != r.Error {
		t.Errorf("the outline is %+v", o)
	}
	if got := o.Objects(); !slices.Equal(got, []string{endpoint + "/00ff"}) || !slices.Equal(got, r.Objects()) {
		t.Errorf("objects are %v", got)
	}
}

func TestCommandStateEnded(t *testing.T) {
	for state, want := range map[message.CommandState]bool{message.CommandQueued: false, message.CommandSent: false,
		message.CommandCompleted: true, message.CommandExpired: true, message.CommandCancelled: true} {
		if state.Ended() != want {
			t.Errorf("%s has ended: %t", state, !want)
		}
	}
}
