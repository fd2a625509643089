# What dead runs have left, and how to tell.

# What is in the file `mark` of a run's directory, before its name; and in the file `used` of a project's.
run_mark='directory of an offload run, format 1: '
project_mark='directory of an offload project, format 1: '

# Whether the directory $1 is one that a run has made: its file $2 says so, in a line with $3 and its name, and nothing is a
# link. What else is called like that is somebody's.
is_ours() {
    [ -d "$1" ] && ! [ -L "$1" ] && [ -O "$1" ] && [ -f "$1/$2" ] && ! [ -L "$1/$2" ] &&
        grep -qxF -- "$3${1##*/}" "$1/$2"
}

# Whether $1 is a process with the word $2 in its arguments: numbers are used again.
has_argument() {
    kill -0 "$1" 2>/dev/null || return 1
    case $(tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null || ps -o args= -p "$1") in
        *"$2"*) return 0 ;;
    esac
    return 1
}

# Sends the signal $1 to the session $2; one that kills, to what its processes start meanwhile, too.
signal() {
    kill -s "$1" -- "-$2" 2>/dev/null
    left=50
    while [ "$left" -gt 0 ]; do
        left=$((left - 1))
        found=
        for status in /proc/[0-9]*/stat; do
            { read -r line <"$status"; } 2>/dev/null || continue
            set -- "$1" "$2" ${line##*)}
            if [ "$6" = "$2" ] && [ "$3" != Z ]; then
                process=${status#/proc/}
                kill -s "$1" "${process%/stat}" 2>/dev/null && found=yes
            fi
        done
        [ "$1$found" = KILLyes ] || break
    done
}

remove() {
    rm -rf "$@" 2>/dev/null || {
        chmod -R u+rwx "$@"
        rm -rf "$@"
    }
}

# Removes the directory $1 of a run, its mark last: what is left when this is interrupted is known to the next run.
remove_run() {
    for entry in "$1"/*; do
        [ "$entry" = "$1/mark" ] || remove "$entry"
    done
    remove "$1"
}

# Ends what still runs of the dead run in the directory $1: its holder was killed, and could not.
end_commands() {
    for file in "$1"/connections/*/pids/* "$1"/connections/*/ended/*; do
        name=
        { read -r name <"$file"; } 2>/dev/null
        [ -n "$name" ] && has_argument "${file##*/}" "$name" && signal KILL "${file##*/}"
    done
}

# Removes the directories of dead runs in the directory $1 of a project; counts them in $removed, and others in $alive.
remove_dead() {
    for other in "$1"/run-* "$1"/new-*; do
        is_ours "$other" mark "$run_mark" || continue
        is_alive=
        for file in "$other"/pid "$other"/connections/*/pid; do
            { read -r pid <"$file"; } 2>/dev/null && has_argument "$pid" offload- && is_alive=yes
        done
        if [ -n "$is_alive" ]; then
            alive=$((alive + 1))
        else
            end_commands "$other"
            remove_run "$other" && removed=$((removed + 1))
        fi
    done
}
