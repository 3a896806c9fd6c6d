#!/usr/bin/env bash
# Draws flame graphs of Isthmus under scenarios of benches/peers: where the CPU time of a put, a get, a list and a delivered event
# goes. Arguments: the directory of the SVG files, then scenarios. Needs perf, and cargo, which installs inferno.
set -euo pipefail

output=$1
shift
[ $# -gt 0 ] || set -- puts gets lists lone lone-mtls

command -v perf >/dev/null || {
  echo "perf is missing: install linux-perf (Debian) or linux-tools (Ubuntu), then run this again." >&2
  exit 1
}
if ! command -v inferno-flamegraph >/dev/null; then
  cargo install --quiet --locked --root target/inferno inferno@0.12.8
  PATH=$PWD/target/inferno/bin:$PATH
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo bench --locked --profile dist --bench peers -- --rounds 1 --servers Isthmus --output "$work/results" \
  --stacks "$work" --exact "$@"
mkdir -p "$output"
for scenario in "$@"; do
  # The stack of a sample is cut off after 8 KiB: the frames above have no name.
  perf script -i "$work/$scenario" --no-inline 2>/dev/null | inferno-collapse-perf 2>/dev/null |
    sed -e 's/^[^;]*;//' -e 's/\(\[unknown\];\)*//g' >"$work/folded"
  inferno-flamegraph --title "$scenario: CPU time of the server" --minwidth 0.4 --colors rust --hash \
    <"$work/folded" >"$output/$scenario.svg"
  echo "$output/$scenario.svg"
done
