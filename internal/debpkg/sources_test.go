//go:build linux

package debpkg

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const bookworm = "ID=debian\nVERSION_CODENAME=bookworm\n"

func TestDeriveSources(t *testing.T) {
	for _, tc := range []struct {
		name    string
		release string
		oneLine string
		deb822  string
		suite   string
		want    []string // "uris | suites | components | signed-by"
	}{
		{
			name:    "deb822 of Debian 12",
			release: bookworm,
			deb822: "Types: deb\n# a remark\nURIs: http://a.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k/debian-archive-keyring.gpg\n\n" +
				"Types: deb\nURIs: http://a.example/debian-security\nSuites: bookworm-security\nComponents: main\nSigned-By: /k/debian-archive-keyring.gpg\n",
			suite: "trixie",
			want: []string{
				"http://a.example/debian | trixie trixie-updates | main | /k/debian-archive-keyring.gpg",
				"http://a.example/debian-security | trixie-security | main | /k/debian-archive-keyring.gpg",
			},
		},
		{
			name:    "one-line, options, other components, a comment",
			release: bookworm,
			oneLine: "deb [ signed-by=/k/debian-archive-keyring.gpg arch=amd64,i386 ] http://a.example/debian bookworm main contrib non-free # remark\n#deb http://b.example/debian bookworm main\n",
			suite:   "testing",
			want:    []string{"http://a.example/debian | testing | main | /k/debian-archive-keyring.gpg"},
		},
		{
			name:    "a moving suite has no updates and security of its own",
			release: bookworm,
			oneLine: "deb http://a.example/debian bookworm main\ndeb http://a.example/debian bookworm-updates main\ndeb http://a.example/debian-security bookworm-security main\n",
			suite:   "testing",
			want:    []string{"http://a.example/debian | testing | main | "},
		},
		{
			name:    "own suites stay as they are, without backports",
			release: bookworm,
			oneLine: "deb http://a.example/debian bookworm main\ndeb http://a.example/debian bookworm-updates main\ndeb http://a.example/debian bookworm-backports main\n",
			want: []string{
				"http://a.example/debian | bookworm | main | ",
				"http://a.example/debian | bookworm-updates | main | ",
			},
		},
		{
			name:    "third parties, sources and what is switched off are left out",
			release: bookworm,
			oneLine: "deb https://x.example/apt tool-bookworm main\ndeb [signed-by=/k/vendor.gpg] https://y.example/stable/debian bookworm main\n" +
				"deb-src http://a.example/debian bookworm main\ndeb http://d.example/linux/debian bookworm stable\ndeb cdrom:[Debian]/ bookworm main\n",
			deb822: "Types: deb\nURIs: https://n.example/node\nSuites: nodistro\nComponents: main\n\n" +
				"Enabled: no\nTypes: deb\nURIs: http://a.example/debian\nSuites: bookworm\nComponents: main\n\n" +
				"Types: deb\nURIs: https://v.example/deb\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----\n",
			suite: "trixie",
			want:  nil,
		},
		{
			name:    "a mirror with another path, trusted, twice",
			release: bookworm,
			oneLine: "deb [trusted=yes] https://mirror.example/remote bookworm main\ndeb [trusted=yes] https://mirror.example/remote bookworm main\n",
			suite:   "trixie",
			want:    []string{"https://mirror.example/remote | trixie | main | "},
		},
		{
			name:    "security under its old name",
			release: "ID=debian\nVERSION_CODENAME=buster\n",
			oneLine: "deb http://a.example/debian-security buster/updates main\n",
			suite:   "trixie",
			want:    []string{"http://a.example/debian-security | trixie-security | main | "},
		},
		{
			name:    "a machine that follows stable by name",
			release: bookworm,
			oneLine: "deb http://a.example/debian stable main\n",
			suite:   "trixie",
			want:    []string{"http://a.example/debian | trixie | main | "},
		},
		{
			name:    "Ubuntu keeps universe",
			release: "ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\nUBUNTU_CODENAME=noble\n",
			deb822:  "Types: deb\nURIs: http://u.example/ubuntu/\nSuites: noble noble-updates noble-backports\nComponents: main universe restricted multiverse\nSigned-By: /k/ubuntu-archive-keyring.gpg\n",
			suite:   "questing",
			want:    []string{"http://u.example/ubuntu/ | questing questing-updates | main universe | /k/ubuntu-archive-keyring.gpg"},
		},
		{
			name:    "a rolling child of Debian",
			release: "ID=kali\nID_LIKE=debian\nVERSION_CODENAME=kali-rolling\n",
			oneLine: "deb http://k.example/kali kali-rolling main contrib\n",
			want:    []string{"http://k.example/kali | kali-rolling | main | "},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "sources.list"), tc.oneLine)
			write(t, filepath.Join(dir, "sources.list.d", "distro.sources"), tc.deb822)
			machine, err := readSources(dir)
			if err != nil {
				t.Fatal(err)
			}
			derived := deriveSources(machine, parseRelease(tc.release), tc.suite)
			var got []string
			for _, e := range derived {
				got = append(got, strings.Join([]string{strings.Join(e.uris, " "), strings.Join(e.suites, " "),
					strings.Join(e.components, " "), e.options["signed-by"]}, " | "))
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(tc.want, "\n  "))
			}
			if again := formatSources(parseDeb822(formatSources(derived))); again != formatSources(derived) {
				t.Errorf("what was written reads back as\n%s", again)
			}
		})
	}
}

func TestPlanned(t *testing.T) {
	out := "NOTE: a simulation\nInst libgmp10 (2:6.3.0+dfsg-3 Debian:13.1/stable [amd64])\n" +
		"Inst base-files [12.4] (13.8 Debian:13.1/stable, Debian-Security:13/stable-security [amd64]) [x:amd64 ]\n" +
		"Inst tzdata (2025b-4 Debian:13.1/stable [all])\nConf tzdata (2025b-4 Debian:13.1/stable [all])\n"
	want := []string{"base-files_13.8_amd64.deb", "libgmp10_2%3a6.3.0+dfsg-3_amd64.deb", "tzdata_2025b-4_all.deb"}
	if got := planned(out); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDecisive(t *testing.T) {
	out := "Reading package lists...\nThe following packages have unmet dependencies:\n a : Depends: b but it is not going to be installed\nE: Unable to correct problems, you have held broken packages.\nDone\n"
	want := []string{
		"The following packages have unmet dependencies:", "a : Depends: b but it is not going to be installed",
		"E: Unable to correct problems, you have held broken packages.",
	}
	if got := decisive(out); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := decisive("one\ntwo\n\nthree\nfour\n"); !slices.Equal(got, []string{"two", "three", "four"}) {
		t.Errorf("got %q, want the last three lines", got)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
