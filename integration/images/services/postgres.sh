#!/bin/bash
# Initialises the database at the first run and becomes the server.
set -eu
bin=$(echo /usr/lib/postgresql/*/bin)
if [ ! -e "$PGDATA/PG_VERSION" ]; then
	"$bin/initdb" --no-sync --auth=trust --encoding=UTF8 --locale=C >/dev/null
fi
exec "$bin/postgres" -c listen_addresses=127.0.0.1 -c unix_socket_directories=/tmp
