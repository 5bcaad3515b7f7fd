#!/usr/bin/env bash
# MuJoCo renders through EGL or OSMesa. Installs Mesa's on Debian and Ubuntu where they are missing and we may;
# says what to do where we may not.
set -euo pipefail

PACKAGES="libegl1 libgl1-mesa-dri libgles2 libosmesa6"

has() { ldconfig -p 2>/dev/null | grep -q "$1"; }

case "$(uname -s)" in
  Linux) ;;
  *) exit 0 ;; # macOS renders with what it has
esac
if { has libEGL.so.1 && has libGLESv2.so.2; } || has libOSMesa.so; then
  exit 0
fi

explain() {
  echo "Rendering needs these system packages: $PACKAGES" >&2
  echo "$1" >&2
  echo "Then run the same command again." >&2
  exit 1
}

command -v apt-get >/dev/null || explain "Install your distribution's packages of Mesa's EGL, GLES and OSMesa libraries."
if [ "$(id -u)" = 0 ]; then
  SUDO=""
elif sudo -n true 2>/dev/null; then
  SUDO="sudo"
else
  explain "You are not root here. Run: sudo apt-get install -y $PACKAGES"
fi
echo "Installing the system packages that rendering needs: $PACKAGES"
$SUDO apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $SUDO apt-get install -y -qq $PACKAGES >/dev/null
