# ensure_venv PROFILE EXTRAS: make .venv fit for PROFILE, once per state of pyproject.toml and constraints.txt,
# and the page current.
# Sourced by the scripts beside it; `repo` is the checkout's root.

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
venv="${CKPTD_VENV:-$repo/.venv}"
TORCH_INDEX_URL="${TORCH_INDEX_URL:-https://download.pytorch.org/whl/cpu}"

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 3; }

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer was found; install one, or name it by PYTHON=/path/to/python"
}

# CUDA builds of torch are 2 GB that nothing here needs. First what pip has on this machine (its configured
# find-links), then PyTorch's own CPU index, then whatever the default index offers.
install_torch() {
  local pin
  pin="$(grep -E '^torch==' "$repo/constraints.txt")"
  if "$venv/bin/python" -c 'import torch' 2>/dev/null; then return; fi
  say "installing $pin (CPU)"
  "$venv/bin/pip" install -qq --no-index --no-deps "$pin" 2>/dev/null ||
    "$venv/bin/pip" install -qq --no-deps --index-url "$TORCH_INDEX_URL" "$pin" 2>/dev/null ||
    "$venv/bin/pip" install -qq -c "$repo/constraints.txt" "$pin" ||
    die "torch could not be installed; set TORCH_INDEX_URL to an index that has $pin"
}

# timm requires torchvision, of which there is no build for every CPU torch; building models needs none of it.
install_timm() {
  local pins
  mapfile -t pins < <(grep -E '^(timm|pillow)==' "$repo/constraints.txt")
  if "$venv/bin/python" -c 'import importlib.metadata as m; m.version("timm"), m.version("pillow")' 2>/dev/null; then
    return
  fi
  "$venv/bin/pip" install -qq --no-deps "${pins[@]}" || die "${pins[*]}: could not be installed; see pip's message above"
}

# The page, where its sources are newer than what was built from them; which of them, page_backend.py says.
ensure_page() {
  local needed
  needed="$("$venv/bin/python" "$repo/scripts/page_backend.py" requires)" || exit 3
  if [ -n "$needed" ]; then
    say "installing $needed"
    "$venv/bin/pip" install -qq "$needed" || die "$needed: pip could not install it; CKPTD_PAGE=skip does without the page"
  fi
  "$venv/bin/python" "$repo/scripts/page_backend.py" || exit 3
}

ensure_venv() {
  ensure_packages "$@"
  ensure_page
}

ensure_packages() {
  local profile="$1" extras="$2" stamp wanted
  stamp="$venv/.ckptd-$profile"
  wanted="$(cat "$repo/pyproject.toml" "$repo/constraints.txt" | cksum) $repo"
  if [ -x "$venv/bin/ckptd" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
  (
    # Two scripts started together must not install over each other.
    mkdir -p "$repo/.cache"
    exec 9>"$repo/.cache/venv.lock"
    if command -v flock >/dev/null; then flock 9; fi
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi
    if [ ! -x "$venv/bin/pip" ]; then
      say "creating $venv"
      "$(find_python)" -m venv "$venv" || die "python -m venv failed; on Debian and Ubuntu: apt install python3-venv"
    fi
    case ",$extras," in *,demo,* | *,test,* | *,torch,*) install_torch ;; esac
    say "installing ckptd${extras:+[$extras]}"
    "$venv/bin/pip" install -qq -c "$repo/constraints.txt" -e "$repo${extras:+[$extras]}" ||
      die "pip could not install ckptd; see its message above"
    case ",$extras," in *,test,*) install_timm ;; esac
    printf '%s' "$wanted" >"$stamp"
  ) || exit $?
}
