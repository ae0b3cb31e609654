package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/desired"
)

// memory is what a restarted enforcer must not forget: how new the policy in
// the kernel is, and which rule set numbers were given out.
type memory struct {
	path string

	InForce     desired.Position
	NextRuleSet rule.Verdict
}

func recall(path string) (*memory, error) {
	m := &memory{path: path}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(b, m)
	}
	if err != nil {
		return nil, fmt.Errorf("read what the last run had in force from %s: %w", path, err)
	}
	return m, nil
}

// remember replaces the file if anything is new. What could not be written is
// not remembered here either: the next call writes it.
func (m *memory) remember(at desired.Position, next rule.Verdict) error {
	if m.InForce == at && m.NextRuleSet == next {
		return nil
	}
	b, err := json.Marshal(memory{InForce: at, NextRuleSet: next})
	if err != nil {
		return fmt.Errorf("remember revision %d: %w", at.Revision, err)
	}
	if err := os.WriteFile(m.path+".next", b, 0o600); err != nil {
		return fmt.Errorf("remember revision %d: %w", at.Revision, err)
	}
	if err := os.Rename(m.path+".next", m.path); err != nil {
		return fmt.Errorf("remember revision %d: %w", at.Revision, err)
	}
	m.InForce, m.NextRuleSet = at, next
	return nil
}
