//go:build linux

package node

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// perfect is a node that can do everything.
func perfect() Probed {
	p := Probed{Kernel: "6.12.0", Arch: "amd64", Findings: map[Name]Finding{}}
	for _, f := range features {
		p.Findings[f.name] = Finding{Status: Yes}
	}
	return p
}

func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		name                     string
		change                   map[Name]Status
		run, checkpoint, restore Verdict
	}{
		{name: "all there", run: Verdict{Verdict: Yes}, checkpoint: Verdict{Verdict: Yes}, restore: Verdict{Verdict: Yes}},
		{
			name: "not root", change: map[Name]Status{Root: No},
			run: Verdict{No, []Name{Root}}, checkpoint: Verdict{No, []Name{Root}}, restore: Verdict{No, []Name{Root}},
		},
		{
			name: "a capability that only limits", change: map[Name]Status{Capabilities: Limited},
			run: Verdict{Limited, []Name{Capabilities}}, checkpoint: Verdict{Limited, []Name{Capabilities}}, restore: Verdict{Limited, []Name{Capabilities}},
		},
		{
			name: "no CRIU", change: map[Name]Status{Criu: No, CriuCheck: Unknown, CriuTimeNS: Unknown},
			run: Verdict{Verdict: Yes}, checkpoint: Verdict{No, []Name{Criu}}, restore: Verdict{No, []Name{Criu}},
		},
		{
			name: "a CRIU that is too old", change: map[Name]Status{CriuCheck: No},
			run: Verdict{Verdict: Yes}, checkpoint: Verdict{No, []Name{CriuCheck}}, restore: Verdict{No, []Name{CriuCheck}},
		},
		{
			name: "a kernel without CONFIG_CHECKPOINT_RESTORE", change: map[Name]Status{Kcmp: No, PrSetMM: No, NsLastPid: No},
			run: Verdict{Limited, []Name{NsLastPid}}, checkpoint: Verdict{No, []Name{Kcmp}}, restore: Verdict{No, []Name{PrSetMM}},
		},
		{
			name: "no soft-dirty, no userfaultfd, no user namespaces: other jobs than these", change: map[Name]Status{SoftDirty: No, CriuMemTrack: No, Userfaultfd: No, CriuUffd: No, UserNS: No},
			run: Verdict{Verdict: Yes}, checkpoint: Verdict{Verdict: Yes}, restore: Verdict{Verdict: Yes},
		},
		{
			name: "no time namespaces", change: map[Name]Status{TimeNS: No},
			run: Verdict{Verdict: Yes}, checkpoint: Verdict{Verdict: Yes}, restore: Verdict{Limited, []Name{TimeNS}},
		},
		{
			name: "no freezer", change: map[Name]Status{Freezer: No},
			run: Verdict{Limited, []Name{Freezer}}, checkpoint: Verdict{No, []Name{Freezer}}, restore: Verdict{Verdict: Yes},
		},
		{
			name: "ptrace for nobody", change: map[Name]Status{Ptrace: No},
			run: Verdict{Verdict: Yes}, checkpoint: Verdict{No, []Name{Ptrace}}, restore: Verdict{No, []Name{Ptrace}},
		},
		{
			name: "what is needed is unknown", change: map[Name]Status{Kcmp: Unknown},
			run: Verdict{Verdict: Yes}, checkpoint: Verdict{Limited, []Name{Kcmp}}, restore: Verdict{Verdict: Yes},
		},
		{
			name: "a no names only what is decisive", change: map[Name]Status{Toolkit: No, Capabilities: Limited},
			run: Verdict{No, []Name{Toolkit}}, checkpoint: Verdict{No, []Name{Toolkit}}, restore: Verdict{No, []Name{Toolkit}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := perfect()
			for name, status := range tc.change {
				p.Findings[name] = Finding{Status: status, Detail: "seen"}
			}
			r := Judge(p)
			ok := true
			for verb, want := range map[Verb]Verdict{Run: tc.run, Checkpoint: tc.checkpoint, Restore: tc.restore} {
				got := r.Verdicts[verb]
				if got.Verdict != want.Verdict || !slices.Equal(got.Because, want.Because) {
					t.Errorf("%s: got %v, want %v", verb, got, want)
				}
				ok = ok && want.Verdict != No
			}
			if r.OK() != ok {
				t.Errorf("OK is %v, want %v", r.OK(), ok)
			}
		})
	}
}

// TestFeatureTable: whatever is not a yes must say what follows and what to do.
func TestFeatureTable(t *testing.T) {
	seen := map[Name]bool{}
	for _, f := range features {
		if f.title == "" || f.consequence == "" || f.remedy == "" {
			t.Errorf("%s lacks a title, a consequence or a remedy", f.name)
		}
		if seen[f.name] {
			t.Errorf("%s is there twice", f.name)
		}
		seen[f.name] = true
	}
}

func TestJudgeCapabilities(t *testing.T) {
	for _, tc := range []struct {
		missing []string
		status  Status
		text    string
	}{
		{nil, Yes, ""},
		{[]string{"CAP_SYS_RESOURCE"}, Limited, "CAP_SYS_RESOURCE is missing: raising hard rlimits"},
		{[]string{"CAP_WAKE_ALARM"}, Limited, "CAP_WAKE_ALARM is missing: operations that need it fail"},
		{[]string{"CAP_SYS_RESOURCE", "CAP_SYS_ADMIN"}, No, "; CAP_SYS_ADMIN is missing: needed for"},
	} {
		got := judgeCapabilities(tc.missing)
		if got.Status != tc.status || !strings.Contains(got.Detail, tc.text) {
			t.Errorf("%v: got %v, want %v with %q", tc.missing, got, tc.status, tc.text)
		}
	}
}

func TestPrintAndJSON(t *testing.T) {
	p := perfect()
	p.Findings[CriuCheck] = Finding{No, "Unexpected rt vDSO area bounds"}
	p.Findings[SoftDirty] = Finding{No, "not in this kernel"}
	r := Judge(p)
	var text strings.Builder
	if err := r.Print(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"kernel", "6.12.0 (amd64)", "=> checkpoint ", "no       criu check\n", "Unexpected rt vDSO area bounds", "criu check: install a newer CRIU",
		"no incremental pre-dump",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not in\n%s", want, &text)
		}
	}
	for line := range strings.Lines(text.String()) {
		if strings.TrimRight(line, " \n") != strings.TrimRight(line, "\n") {
			t.Errorf("blanks at the end of %q", line)
		}
	}
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	// Machines rely on these names.
	for _, want := range []string{
		`"format":1`, `"kernel":"6.12.0"`, `"arch":"amd64"`, `"name":"soft_dirty"`, `"status":"no"`, `"remedy":`, `"consequence":`,
		`"checkpoint":{"verdict":"no","because":["criu_check"]}`, `"run":{"verdict":"yes"}`,
	} {
		if !strings.Contains(string(data), want) {
			t.Errorf("%s is not in %s", want, data)
		}
	}
}
