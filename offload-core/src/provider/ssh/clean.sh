# Removes what dead runs have left, and the copies of the files of projects without any run. In: $dir (for everything of
# Offload's), $project (a name, or `*`), $own (the directory of the run that this is). Leaves with counts.
PATH=$PATH:/usr/sbin:/sbin
removed=0 alive=0 copies=0
for place in "$dir"/$project; do
    is_ours "$place" used "$project_mark" || continue
    before=$alive
    remove_dead "$place"
    # This is no run of tests.
    case $own in "$place"/*) alive=$((alive - 1)) ;; esac
    if [ "$alive" = "$before" ]; then
        # Nobody may begin to use it now.
        if command -v flock >/dev/null; then
            exec 9>"$place/lock"
            flock -n 9 || continue
        fi
        if [ -d "$place/base" ]; then
            rm -f "$place/base.json"
            remove "$place/base" && copies=$((copies + 1))
        fi
        rm -f "$place/used" "$place/lock"
        exec 9>&-
        rmdir "$place" 2>/dev/null
    fi
done
echo "$removed $copies $alive"
