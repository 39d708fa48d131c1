# shellcheck shell=bash
# Programs built from the Go module proxy, verified by the checksums that their projects publish with them or by the checksum
# database; sourced.
export GOFLAGS="-buildvcs=false -mod=mod" CGO_ENABLED=0

# source_of PATH VERSION: prints the directory of a module's sources
source_of() { go mod download -json "$1@$2" | sed -n 's/.*"Dir": "\(.*\)",/\1/p'; }

# module DIR PATH VERSION: goes to a new module DIR that takes what PATH takes, in the versions that PATH was published with
module() {
  local source
  source=$(source_of "$2" "$3")
  mkdir "$1"
  cd "$1" || return
  {
    echo "module build"
    grep -E '^(go|godebug) ' "$source/go.mod"
    echo "require $2 $3"
    # Outside its own repository k8s.io/kubernetes has no versions for its parts: they are those of the release.
    sed -nE "s#^\s*(k8s\.io/[a-z-]+) => \./staging.*#replace \1 => \1 v0.${3#*.}#p" "$source/go.mod"
  } >go.mod
  sort -u "$source"/go*.sum >go.sum
}
