#!/bin/sh
# The server's roles, made when the database is created; SECURITY.md has the reasons.
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --set server_password="$SERVER_PASSWORD" --set capture_password="$CAPTURE_PASSWORD" <<'SQL'
create role momentum_server login noinherit password :'server_password';
create role momentum_capture login replication password :'capture_password';
SQL
