# What dead runs have left, and how to tell.

# Whether $1 is the process of a holder: numbers are used again.
is_holder() {
    kill -0 "$1" 2>/dev/null || return 1
    case $(tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null || ps -o args= -p "$1") in
        *offload-*) return 0 ;;
    esac
    return 1
}

remove() {
    rm -rf "$@" 2>/dev/null || {
        chmod -R u+rwx "$@"
        rm -rf "$@"
    }
}

# Removes the directories of dead runs in the directory $1 of a project; counts them in $removed, and others in $alive.
remove_dead() {
    for other in "$1"/run-* "$1"/new-*; do
        [ -d "$other" ] || continue
        is_alive=
        for file in "$other"/pid "$other"/connections/*/pid; do
            { read -r pid <"$file"; } 2>/dev/null && is_holder "$pid" && is_alive=yes
        done
        if [ -n "$is_alive" ]; then
            alive=$((alive + 1))
        else
            remove "$other" && removed=$((removed + 1))
        fi
    done
}
