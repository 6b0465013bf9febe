# What compare_inherit.sh and compare_methods.sh have in common: their options, and trainings that are kept once they have ended.
# Meant to be sourced, by a script that has `seeds`, `rates`, `folder` and `usage` set, with the repository as working folder.
options=()

# read_options ARGUMENT...: --seeds, --rates, --folder and --set, which goes into `options`; all others to the function `own_option`, which
# says with status 0 that it knows one, and takes its value.
read_options() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --seeds) seeds=${2:?--seeds needs numbers, such as \"1 2 3\"} ;;
      --rates) rates=${2:?--rates needs numbers, such as \"7e-4 2e-3\"} ;;
      --folder) folder=${2:?--folder needs a folder} ;;
      --set) options+=(--set "${2:?--set needs KEY=VALUE}") ;;
      *) own_option "$@" || { echo "error: $1 is not an option; usage: $usage" >&2; exit 2; } ;;
    esac
    shift 2
  done
}

# own_option NAME VALUE: a script that has options of its own defines it again
own_option() { return 1; }

# begin_folder WORDS: make the folder of the comparison, or take it up if it was begun with these --set options, given as words
begin_folder() {
  mkdir -p "$folder"
  if [ -e "$folder/options.txt" ] && [ "$(cat "$folder/options.txt")" != "$1" ]; then
    echo "error: $folder was begun with other --set options: '$(cat "$folder/options.txt")', not '$1'; use another --folder" >&2
    exit 2
  fi
  echo "$1" >"$folder/options.txt"
  touch "$folder/times.txt"
}

# timed NAME COMMAND...: run it as one of `total`, unless it was run to its end; then times.txt has a line: name, and seconds that passed,
# user, system. What a command prints is in NAME.txt; a training that was asked to stop ends well and prints nothing.
number=0
timed() {
  local name=$1 seconds TIMEFORMAT="%R %U %S"
  number=$((number + 1))
  grep -q "^$name " "$folder/times.txt" && return
  echo "== $number of $total: $name" >&2
  seconds=$({ time "${@:2}" >"$folder/$name.txt" 2>&3; } 3>&2 2>&1)
  [ -s "$folder/$name.txt" ] || { echo "error: $name was stopped before its end; the same command goes on" >&2; exit 1; }
  echo "$name $seconds" >>"$folder/times.txt"
}

# say_times: how long all of it took
say_times() {
  awk '{ passed += $2; cpu += $3 + $4 } END { printf "%d runs took %.0f minutes, %.0f of them CPU\n", NR, passed / 60, cpu / 60 }' "$folder/times.txt"
}
