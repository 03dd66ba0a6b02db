#!/bin/sh
# An offline wheelhouse of this project, every file pinned by hash. See the README beside this file.
#
#   wheelhouse.sh build LIST OUT            with a package registry: LIST is coordinator, site, or a file of package names
#   wheelhouse.sh install FOLDER VENV [SHA] without any network: a new virtual environment at VENV; SHA is what `build` printed
#
# PYTHON names the interpreter (default python3). It must be of the same version and platform at both ends.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

fail() {
  echo "wheelhouse.sh: $1" >&2
  exit "${2:-2}"
}

platform() { "$python" -c 'import sys, sysconfig; print(sys.implementation.cache_tag, sysconfig.get_platform())'; }

sha256() { "$python" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1"; }

# The entries of requirements.lock for the packages that the file $1 names, with all their hashes.
pick() {
  awk '
    FNR == NR { sub(/#.*/, ""); gsub(/[ \t\r]/, ""); if ($0 != "") wanted[$0] = 1; next }
    /^[A-Za-z0-9]/ { name = $0; sub(/==.*/, "", name); take = (name in wanted); if (take) found[name] = 1 }
    take
    END { for (name in wanted) if (!(name in found)) { print name ": not in requirements.lock" > "/dev/stderr"; bad = 1 } exit bad }
  ' "$1" "$root/requirements.lock"
}

build() {
  list=$1 out=$2
  [ -f "$list" ] || list="$here/$1.txt"
  [ -f "$list" ] || fail "$1: no such list - coordinator, site, or a file of package names"
  [ ! -e "$out" ] || fail "$out: exists already - choose another name or remove it"
  mkdir -p "$(dirname "$out")"
  work=$(mktemp -d "$out.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  mkdir "$work/wheels" "$work/tmp"
  pick "$list" >"$work/requirements.txt"
  pick "$here/build.txt" >"$work/tmp/build.txt"
  "$python" -m venv "$work/tmp/venv"
  pip="$work/tmp/venv/bin/python -m pip"
  $pip download --quiet --require-hashes --no-deps --only-binary :all: -r "$work/requirements.txt" -d "$work/wheels"
  $pip install --quiet --require-hashes --no-deps --only-binary :all: -r "$work/tmp/build.txt"
  $pip wheel --quiet --no-index --no-deps --no-build-isolation "$root" -w "$work/tmp/own"
  own=$(cd "$work/tmp/own" && echo sgps-*.whl)
  version=${own#sgps-}
  echo "sgps==${version%%-*} --hash=sha256:$(sha256 "$work/tmp/own/$own")" >>"$work/requirements.txt"
  mv "$work/tmp/own/$own" "$work/wheels/"
  platform >"$work/platform"
  cp "$here/wheelhouse.sh" "$work/"
  rm -rf "$work/tmp"
  chmod 755 "$work"
  mv "$work" "$out"
  trap - EXIT
  echo "$out: $(ls "$out/wheels" | wc -l | tr -d ' ') wheels for $(cat "$out/platform")"
  echo "sha256 of requirements.txt, which pins all of them: $(sha256 "$out/requirements.txt")"
}

install() {
  from=$1 venv=$2 expected=${3:-}
  [ -f "$from/requirements.txt" ] || fail "$from: is no wheelhouse - name the folder that build wrote"
  [ ! -e "$venv" ] || fail "$venv: exists already - install beside it, then change the link (see docs/how-to/deploy.md)"
  [ "$(platform)" = "$(cat "$from/platform")" ] ||
    fail "this is $(platform), the wheelhouse is for $(cat "$from/platform") - name the right interpreter with PYTHON" 3
  [ -z "$expected" ] || [ "$(sha256 "$from/requirements.txt")" = "$expected" ] ||
    fail "$from/requirements.txt: is not the one that was built - nothing was installed" 4
  trap 'rm -rf "$venv"' EXIT
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --no-index --find-links "$from/wheels" --no-cache-dir --require-hashes --no-deps \
    --only-binary :all: -r "$from/requirements.txt"
  trap - EXIT
  echo "$venv: installed; look for contradictions with $venv/bin/python -m pip check"
}

case "${1:-} $#" in
  "build 3") build "$2" "$3" ;;
  "install 3" | "install 4") install "$2" "$3" "${4:-}" ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
