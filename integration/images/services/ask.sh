#!/bin/bash
# Sends a line to a TCP port of this container and prints the answer's first line.
# usage: ask.sh PORT LINE
set -eu
exec 3<>"/dev/tcp/127.0.0.1/$1"
printf '%s\r\n' "$2" >&3
IFS= read -r answer <&3
printf '%s\n' "${answer%$'\r'}"
