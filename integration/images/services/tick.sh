# Counts up in a shell variable and shows it in a file: "NONCE COUNT".
# usage: tick.sh FILE; for bash and busybox's sh
read -r nonce </proc/sys/kernel/random/uuid
n=0
while :; do
	n=$((n + 1))
	echo "$nonce $n" >"$1.new"
	mv "$1.new" "$1"
	sleep 0.02
done
