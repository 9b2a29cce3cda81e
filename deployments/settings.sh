# Sourced by the start scripts.
# settings FILE exports what FILE sets (NAME=value, a line each). What the environment has set already counts more, so
# that secrets can come from wherever they are kept.
settings() {
    local name value
    while IFS='=' read -r name value; do
        if [[ $name && $name != \#* && -z ${!name:-} ]]; then export "$name=$value"; fi
    done < "$1"
    SETTINGS=$1
}
# need NAME… ends with status 2 where one has no value.
need() {
    local name
    for name in "$@"; do
        [[ ${!name:-} ]] || { echo "Set $name, in the environment or in a copy of $SETTINGS." >&2; exit 2; }
    done
}
