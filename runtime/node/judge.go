//go:build linux

package node

import "fmt"

// reportFormat is the version of Report's JSON.
const reportFormat = 1

// Report is what a node can do. Its JSON names are stable; later versions add
// names and raise Format only when one changes its meaning.
type Report struct {
	Format   int              `json:"format"`
	Kernel   string           `json:"kernel"`
	Arch     string           `json:"arch"`
	Features []FeatureReport  `json:"features"`
	Verdicts map[Verb]Verdict `json:"verdicts"`
}

// FeatureReport is one feature. Consequence and remedy are there when the status
// is no or limited.
type FeatureReport struct {
	Name        Name   `json:"name"`
	Title       string `json:"title"`
	Status      Status `json:"status"`
	Detail      string `json:"detail,omitempty"`
	Consequence string `json:"consequence,omitempty"`
	Remedy      string `json:"remedy,omitempty"`
}

// Verdict says whether a verb works: yes, no, or limited (it works, with
// exceptions). Because names the features that keep it from being yes; for a no
// only those without which it cannot work.
type Verdict struct {
	Verdict Status `json:"verdict"`
	Because []Name `json:"because,omitempty"`
}

// OK tells whether all verbs can work, if with limits.
func (r Report) OK() bool {
	for _, v := range r.Verdicts {
		if v.Verdict == No {
			return false
		}
	}
	return true
}

// Feature is the report of one feature by name.
func (r Report) Feature(name Name) (FeatureReport, bool) {
	for _, f := range r.Features {
		if f.Name == name {
			return f, true
		}
	}
	return FeatureReport{}, false
}

// Judge makes the report. It only looks at p.
func Judge(p Probed) Report {
	r := Report{Format: reportFormat, Kernel: p.Kernel, Arch: p.Arch, Verdicts: map[Verb]Verdict{}}
	for _, f := range features {
		found, ok := p.Findings[f.name]
		if !ok {
			found = Finding{Unknown, "was not probed"}
		}
		report := FeatureReport{Name: f.name, Title: f.title, Status: found.Status, Detail: found.Detail}
		if found.Status == No || found.Status == Limited {
			report.Consequence, report.Remedy = f.consequence, f.remedy
		}
		r.Features = append(r.Features, report)
	}
	for _, verb := range Verbs {
		r.Verdicts[verb] = judgeVerb(verb, p)
	}
	return r
}

func judgeVerb(verb Verb, p Probed) Verdict {
	var no, limits []Name
	for _, f := range features {
		needed, status := f.needs[verb], p.Findings[f.name].Status
		switch {
		case needed == 0 || status == Yes:
		case needed == required && status == No:
			no = append(no, f.name)
		default: // helps, or works in part, or nobody knows
			limits = append(limits, f.name)
		}
	}
	switch {
	case len(no) > 0:
		return Verdict{No, no}
	case len(limits) > 0:
		return Verdict{Limited, limits}
	}
	return Verdict{Verdict: Yes}
}

// capabilityNeeds are the capabilities without which nothing works. The others
// that root has on most machines only limit.
var capabilityNeeds = map[string]string{
	"CAP_SYS_ADMIN":       "namespaces and mounts",
	"CAP_SYS_PTRACE":      "entering processes",
	"CAP_SETUID":          "becoming the container's user",
	"CAP_SETGID":          "becoming the container's groups",
	"CAP_SETPCAP":         "giving a container its capabilities",
	"CAP_SYS_CHROOT":      "entering a container's file system",
	"CAP_DAC_OVERRIDE":    "reaching files of all users",
	"CAP_KILL":            "signals to processes of all users",
	"CAP_NET_ADMIN":       "a container's network",
	"CAP_FOWNER":          "files of all users",
	"CAP_CHOWN":           "files of all users",
	"CAP_DAC_READ_SEARCH": "reaching files of all users",
}

// capabilityLimits say what fails without those that only limit.
var capabilityLimits = map[string]string{
	"CAP_SYS_RESOURCE": "raising hard rlimits, lowering oom_score_adj and growing pipes past their limit fail, and so does restoring processes that have done it",
	"CAP_AUDIT_WRITE":  "containers cannot have it",
	"CAP_MKNOD":        "device nodes cannot be made for containers",
}

// judgeCapabilities makes a finding of the capabilities that root lacks.
func judgeCapabilities(missing []string) Finding {
	if len(missing) == 0 {
		return Finding{Status: Yes}
	}
	f := Finding{Status: Limited}
	for i, name := range missing {
		what := "operations that need it fail"
		if need, ok := capabilityNeeds[name]; ok {
			f.Status = No
			what = "needed for " + need
		} else if limit, ok := capabilityLimits[name]; ok {
			what = limit
		}
		if i > 0 {
			f.Detail += "; "
		}
		f.Detail += fmt.Sprintf("%s is missing: %s", name, what)
	}
	return f
}
