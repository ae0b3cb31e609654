package control

import (
	"strings"
	"testing"

	"weir.dev/weir/cli/internal/parts"
)

func TestADemoWhoseProcessIsGoneSaysWhatToDo(t *testing.T) {
	_, err := NewClient(parts.Demo{Name: "two", Dir: t.TempDir()}).List(t.Context())
	if err == nil || !strings.Contains(err.Error(), `demo "two"`) || !strings.Contains(err.Error(), "weir demo down --name two") {
		t.Errorf("got %v", err)
	}
}
