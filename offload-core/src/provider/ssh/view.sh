# Gives the commands of a run a view of the file system in which the run's files are where they are expected, whatever
# else is there on the host; nothing outside of this view changes. Runs in a mount namespace of its own; in: $tree (the
# run's files, by their absolute paths), $stage (an empty directory); arguments: the paths that the tree has, each after
# `=` (it replaces what is there) or `+` (it is put into what is there). Leaves with the number of the process that holds the view.
set -e
umask 022

# Makes it possible to create something in the directory $1 without the host noticing: everything that it has is put into
# a new directory in memory, which then takes its place.
open_up() {
    case " $opened " in *" $1 "*) return 0 ;; esac
    mount -n -t tmpfs -o mode=755 offload "$stage"
    for old in "${1%/}"/* "${1%/}"/.[!.]* "${1%/}"/..?*; do
        name=${old##*/}
        if [ -L "$old" ]; then
            ln -s "$(readlink "$old")" "$stage/$name"
        elif [ -d "$old" ]; then
            mkdir "$stage/$name"
            mount -n --rbind "$old" "$stage/$name"
        elif [ -e "$old" ]; then
            : >"$stage/$name"
            mount -n --bind "$old" "$stage/$name"
        fi
    done
    if [ "$1" = / ]; then
        mkdir "$stage/.offload-host"
        cd "$stage"
        pivot_root . .offload-host
        cd /
        umount -n -l /.offload-host
        rmdir /.offload-host
    else
        mount -n --move "$stage" "$1"
    fi
    opened="$opened $1"
}

# Shows what the tree has at $2.
show() {
    top=$2
    above=${2%/*}
    while [ -n "$above" ] && ! [ -e "$above" ]; do
        top=$above
        above=${above%/*}
    done
    if [ "$top" = "$2" ] && [ -e "$2" ]; then
        if [ "$1" = + ] && [ -d "$2" ] && [ -d "$tree$2" ]; then
            for part in "$tree$2"/* "$tree$2"/.[!.]* "$tree$2"/..?*; do
                if [ -e "$part" ] || [ -L "$part" ]; then
                    show + "$2/${part##*/}"
                fi
            done
            return 0
        fi
    else
        open_up "${above:-/}"
        if [ -L "$tree$top" ]; then
            ln -s "$(readlink "$tree$top")" "$top"
            return 0
        elif [ -d "$tree$top" ]; then
            [ -d "$top" ] || mkdir "$top"
        else
            : >"$top"
        fi
    fi
    mount -n --bind "$tree$top" "$top"
}

opened=
for what in "$@"; do
    show "${what%%/*}" "/${what#*/}"
done
