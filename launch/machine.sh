# Sourced by gpu.sh and tpu.sh: `machine EXTRA [--dry_run] [--install] COMMAND...` prepares this machine and runs
# `onereward COMMAND...` in the resume loop. HF_TOKEN_SECRET names a secret of Secret Manager with the token of the hub.
source launch/environment.sh

# Python and pip cannot read gs://, so a bucket is mounted at gs/BUCKET, unless it already is, as in a Kubernetes pod.
mount_bucket() {
  needed bucket_is_absent "$1" || return 0
  if [ -z "${dry_run:-}" ] && ! command -v gcsfuse >/dev/null; then
    wrong "gcsfuse is needed for gs://$1: bash launch/gcsfuse.sh installs it on Debian and Ubuntu"
  fi
  run mkdir -p "gs/$1"
  # Complete checkpoints and exports are renamed; a bucket without folders does that file by file.
  run gcsfuse --implicit-dirs --rename-dir-limit=1000000 "$1" "gs/$1"
}

bucket_is_absent() {
  ! mountpoint --quiet "gs/$1"
}

# If a cloud image has too old a Python, uv installs one.
bring_python() {
  if [ -z "${dry_run:-}" ] && [ ! -x .venv/bin/python ] && ! suits "${PYTHON:-python3}"; then
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python 3.11 .venv
  fi
  if [ -z "${dry_run:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
}

# Reads the token of the hub from Secret Manager, as the machine's service account, into the environment of the command, which
# only its own user can see: no command line, file or metadata holds it.
read_token() {
  if [ -n "${dry_run:-}" ]; then
    echo "export HF_TOKEN=\"\$(gcloud secrets versions access latest --secret=$HF_TOKEN_SECRET)\""
    return
  fi
  HF_TOKEN=$(gcloud secrets versions access latest --secret="$HF_TOKEN_SECRET") ||
    wrong "the secret $HF_TOKEN_SECRET can't be read: give this machine's service account roles/secretmanager.secretAccessor on it"
  export HF_TOKEN
}

machine() {
  local extra=$1 install='' bucket
  dry_run=''
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --dry_run) dry_run=yes ;;
      --install) install=yes ;;
      -h | --help) usage ;;
      -*) wrong "there is no option $1: --dry_run and --install come before the command, all others after it" ;;
      *) break ;;
    esac
    shift
  done
  if [ -z "$install" ] || [ $# -gt 0 ]; then check_command "$@"; fi

  for bucket in $(buckets "$@"); do mount_bucket "$bucket"; done
  bring_python
  environment "$extra"
  [ -z "$install" ] || return 0
  [ -z "${HF_TOKEN_SECRET:-}" ] || read_token
  run exec bash launch/resume.sh onereward "${@//gs:\/\//gs/}"
}
