#!/bin/bash
# A tree of 16 processes: this one has 3 children with 4 children each. Each
# counts up in memory and shows "NONCE COUNT PPID" in DIR/PID, and none starts
# further processes.
# usage: tree.sh DIR
set -eu
dir=$1

tick() {
	read -r nonce </proc/sys/kernel/random/uuid
	local n=0
	while :; do
		n=$((n + 1))
		# Read from the kernel: the shell's own variable would hide a new parent.
		read -r _ _ _ ppid _ </proc/$BASHPID/stat
		echo "$nonce $n $ppid" >"$dir/$BASHPID"
		# A pause without a process: nobody writes into the pipe.
		read -r -t 0.05 -u 9 || :
	done
}

branch() {
	for _ in 1 2 3 4; do
		tick &
	done
	tick
}

mkdir -p "$dir"
mkfifo /tmp/never
exec 9<>/tmp/never
for _ in 1 2 3; do
	branch &
done
tick
