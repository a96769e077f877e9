# Sourced by the other scripts: runs commands or prints them in a dry run, and checks arguments.

# Runs a command; a dry run prints it, quoted for a shell.
run() {
  if [ -n "${dry_run:-}" ]; then quoted "$@"; else "$@"; fi
}

# Tests whether a step is needed on this machine; a dry run prints every step, as on a new machine.
needed() {
  [ -n "${dry_run:-}" ] || "$@"
}

# Prints the words as one line that a shell splits into the same words.
quoted() {
  local word option words=() quote=\'
  for word in "$@"; do
    option=''
    if [[ $word =~ ^--[A-Za-z0-9_.-]+= ]]; then option=${BASH_REMATCH[0]}; fi
    word=${word#"$option"}
    case $option$word in
      '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//$quote/$quote\\$quote$quote}'" ;;
    esac
    words+=("$option$word")
  done
  echo "${words[*]}"
}

wrong() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# Prints the comment at the top of the script.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit 0
}

# Reads options up to `--` into variables of their names: those that take a value, those that do not and become "yes", and
# those that choose the `action`. Leaves the words after `--` in `command`.
options() {
  local with_value=" $1 " without=" $2 " actions=" $3 " option
  shift 3
  while [ $# -gt 0 ]; do
    case $1 in
      --) break ;;
      -h | --help) usage ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    option=${1#--}
    if [[ $1 != -* ]]; then
      wrong "$1 stands before --: write -- and then the command"
    elif [[ $with_value == *" $option "* ]]; then
      [[ $# -gt 1 && $2 != -* ]] || wrong "$1 has no value: write $1 VALUE"
      printf -v "$option" %s "$2"
      shift
    elif [[ $without == *" $option "* ]]; then
      printf -v "$option" yes
    elif [[ $actions == *" $option "* ]]; then
      action=$option
    else
      wrong "there is no option $1: see launch/${0##*/} --help"
    fi
    shift
  done
  # shellcheck disable=SC2034  # the caller's
  command=("${@:2}")
  if [ "$action" != up ] && [ $# -gt 0 ]; then wrong "--$action takes no command: leave -- and what follows out"; fi
}

# Checks the command before anything is created or installed for it.
check_command() {
  [ $# -gt 0 ] || wrong "the command is missing, such as: train --config quick --workdir runs/quick"
  local name=$1
  case $name in # names of an earlier release
    gates) name=sanity-checks ;;
    ascend) name=reward-ascent ;;
  esac
  [ -f "onereward_jax/cli/commands/${name//-/_}.py" ] || wrong "there is no command $1: choose one of \`onereward --help\`"
  local word
  for word in "$@"; do
    case $word in
      *[[:cntrl:]]*) wrong "$(printf %q "$word") has a line break or another control character: leave it out" ;;
      *gs://[a-z0-9]*) ;;
      *gs://*) wrong "$word names no bucket: write gs://BUCKET/path" ;;
    esac
  done
}

# Checks the name of the secret that holds the token of the hub, which itself stands on no command line: others read those.
check_secret() {
  [[ $1 =~ ^([A-Za-z0-9._-]+)?$ && ! $1 =~ ^hf_[A-Za-z0-9]{20,}$ ]] ||
    wrong "--hf_token_secret takes the name of a secret, such as hugging-face, never the token itself"
}

# Prints the buckets named by gs:// in the words, each once.
buckets() {
  printf '%s\n' "$@" | grep -oE 'gs://[a-z0-9][a-z0-9._-]*' | sed 's|gs://||' | sort -u
}
