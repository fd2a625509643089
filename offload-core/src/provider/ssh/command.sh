# Runs one command. In: $own (the directory of the connection), $nonce, $end (a line), $enter (what goes before the shell),
# $input (`/dev/null`, or empty: what comes on standard input). The command comes on standard input, up to the line $end.
# By this word, which is among its arguments, it is known from another process with its number.
printf '%s\n' "$end" >"$own/pids/$$" || exit 1
# Its children do not inherit this: they end, and it tells how.
trap : TERM
umask=$(umask)
umask 077
while :; do
    IFS= read -r line || exit 1
    [ "$line" = "$end" ] && break
    printf '%s\n' "$line"
done >"$own/$$.sh" || exit 1
exec 7<"$own/$$.sh" || exit 1
rm -f "$own/$$.sh"
umask "$umask"
# What is put there goes with the connection, however it ends.
export OFFLOAD_SCRATCH="$own"
printf '\036%s %s\n' "$nonce" "$$"
printf '\036%s\n' "$nonce" >&2
if [ -n "$input" ]; then
    $enter /bin/sh /dev/fd/7 <"$input"
else
    $enter /bin/sh /dev/fd/7
fi
code=$?
rm -f "$own/pids/$$"
printf '\036%s\n' "$nonce"
printf '\036%s %s\n' "$nonce" "$code" >&2
# What it has left in the background would keep the session open.
kill -s KILL 0
