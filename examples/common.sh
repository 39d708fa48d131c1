# shellcheck shell=bash
# What the build scripts share. Sourced, not run.

set -euo pipefail

# shellcheck disable=SC2034 # read by the scripts that source this
here=$(cd "$(dirname "${BASH_SOURCE[1]}")" && pwd)
examples=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Where the modules go.
out=${SLIPWAY_EXAMPLES_OUT:-$examples/../target/examples}
mkdir -p "$out"
out=$(cd "$out" && pwd)

# Intermediate files: cargo's target directory, wheels, compilers.
work=$out/build
mkdir -p "$work"

say() { printf '%s: %s\n' "${here##*/}" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# What a build ends with when a program is not installed; build-all tells it from a failure.
missing=3

# need PROGRAM PACKAGE: stops unless PROGRAM is installed.
need() {
    command -v "$1" >/dev/null && return
    say "'$1' is missing; install it with: $2"
    exit "$missing"
}

# put FILE NAME: moves the finished FILE to the output directory, in one step, so that nobody ever
# sees half a module.
put() {
    local new="$out/.$2.$$"
    cp "$1" "$new"
    chmod 644 "$new"
    mv "$new" "$out/$2"
    say "$out/$2 ($(stat -c %s "$out/$2") bytes)"
}

# build_rust PACKAGE: builds a package of this folder's workspace.
build_rust() {
    need cargo 'https://rustup.rs'
    (cd "$examples" &&
        cargo build --quiet --locked --release --target-dir "$work" --package "$1")
    put "$work/wasm32-wasip1/release/$1.wasm" "$1.wasm"
}

# build_c COMPILER SOURCE [FLAG...]: builds this folder's SOURCE with Debian's clang or clang++ and
# wasi-libc. -s drops the library's own debug sections, most of the size.
build_c() {
    local compiler=$1 source=$2
    shift 2
    need "$compiler" 'apt-get install clang lld wasi-libc libclang-rt-dev-wasm32 libc++-dev-wasm32'
    "$compiler" --target=wasm32-wasi -O2 -Wall -Wextra -Werror -s "$@" -o "$work/${source%.*}.wasm" "$here/$source"
    put "$work/${source%.*}.wasm" "${source%.*}.wasm"
}

# build_go NAME: builds this folder's Go module. Without a Go of the system's, the test bed has one.
build_go() {
    PATH=$PATH:$examples/../target/bed/bin
    need go 'https://go.dev/dl, 1.24 or later, or make bed'
    (cd "$here" && GOOS=wasip1 GOARCH=wasm go build -trimpath -ldflags='-s -w' -o "$work/$1.wasm" .)
    put "$work/$1.wasm" "$1.wasm"
}

# unpack_wheel REQUIREMENTS: downloads the one wheel that the hashed requirements file names, unpacks
# it and prints the directory. pip checks the hash; nothing is installed. The directory's name
# depends on the file, so that a new pin is never served from an old download.
unpack_wheel() {
    need python3 'apt-get install python3-pip'
    local wheel
    wheel="$work/wheels/$(sha256sum <"$1" | cut -c 1-16)"
    if [[ ! -d $wheel ]]; then
        say "fetching $(grep -o '^[^# ]*==[^ ]*' "$1") from PyPI"
        rm -rf "$wheel.part"
        python3 -m pip download --quiet --disable-pip-version-check --no-deps \
            --only-binary :all: --require-hashes --requirement "$1" --dest "$wheel.part" >&2
        python3 -m zipfile -e "$wheel.part/"*.whl "$wheel.part"
        rm "$wheel.part/"*.whl
        mv "$wheel.part" "$wheel"
    fi
    printf '%s\n' "$wheel"
}

# debian_source SUITE PACKAGE FILE SHA256: downloads FILE, the upstream archive of a Debian source package, unpacks it and
# prints the directory. apt verifies Debian's signatures, with a package state of its own; the checksum pins the content.
debian_source() {
    command -v apt-get >/dev/null || die "$3 comes from Debian's source packages, through apt: build this example on Debian"
    local apt=$work/apt source=$work/sources/${4::16} keyring mirror
    local -a options
    if [[ ! -d $source ]]; then
        say "fetching $3 from Debian $1"
        rm -rf "$apt" "$source.part"
        mkdir -p "$apt"/{lists,archives}/partial "$source.part"
        keyring=$(find /usr/share/keyrings -name 'debian-archive-keyring.[gp][pg][gp]' | head -n 1)
        [[ -n $keyring ]] || die "Debian's keys are missing: apt-get install debian-archive-keyring"
        mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v '^ *#' |
            grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ' || true)
        echo "deb-src [signed-by=$keyring] ${mirror:-http://deb.debian.org/debian} $1 main" >"$apt/sources.list"
        : >"$apt/status"
        options=(-qq -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
            -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null -o Dir::State::lists="$apt/lists"
            -o Dir::State::status="$apt/status" -o Dir::Cache="$apt" -o APT::Update::Error-Mode=any
            -o APT::Sandbox::User=root -o Acquire::Retries=3)
        apt-get "${options[@]}" update >&2
        (cd "$apt" && apt-get "${options[@]}" source --download-only --tar-only "$2" >&2)
        [[ $(sha256sum <"$apt/$3") == "$4  -" ]] || die "$3 of Debian $1 is not the pinned archive: another version of $2?"
        tar -xf "$apt/$3" -C "$source.part" --strip-components=1
        mv "$source.part" "$source"
        rm -r "$apt"
    fi
    printf '%s\n' "$source"
}
