# shellcheck shell=bash
# Debian's packages of any suite, unpacked and installed nowhere; sourced. $work: a directory for what is left over,
# say: tells what goes on.
mirror=$(grep -hoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1 | tr -d ' ' || true)

# unpack SUITE DIR PACKAGE...: downloads packages of a suite with verified signatures and unpacks them
unpack() {
  local suite=$1 dir=$2 state=$work/apt-$1
  shift 2
  if [ ! -d "$state" ]; then
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    touch "$state/status"
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' \
      "${mirror:-http://deb.debian.org/debian}" "$suite" >"$state/sources.list"
  fi
  local options=(-qq -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=-
    -o "Dir::State::lists=$state/lists" -o "Dir::State::status=$state/status"
    -o "Dir::Cache=$state/cache" -o APT::Sandbox::User=root)
  [ -e "$state/updated" ] || { apt-get "${options[@]}" update; touch "$state/updated"; }
  mkdir -p "$dir" "$work/debs"
  say "downloading $* of $suite"
  (cd "$work/debs" && apt-get "${options[@]}" download "$@")
  for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$dir"; done
  rm -rf "$work/debs"
}
