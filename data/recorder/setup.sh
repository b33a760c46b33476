#!/bin/bash
# setup.sh: fetch the Debian packages and unpack them next to this directory (nothing is installed), build the workloads
set -e
cd "$(dirname "$0")/.."
mkdir -p debs qemu guestroot k61 k612 xen build runs out; cd debs
K61=${K61:-linux-image-6.1.0-56-amd64}; K612=${K612:-linux-image-6.12.117+deb12-amd64}
QEMU=$(apt-get -s install qemu-system-x86 --no-install-recommends | awk '/^Inst/{print $2}')
GUEST="xen-utils-4.17 libxenmisc4.17 libxentoollog1 libxencall1 libxenevtchn1 libxenforeignmemory1 libxenhypfs1 libxenstore4 libxengnttab1 libxendevicemodel1 libxentoolcore1 busybox-static"
apt-get -o DPkg::Lock::Timeout=400 download $K61 $K612 xen-hypervisor-4.17-amd64 $GUEST $QEMU
for p in $QEMU; do dpkg -x ${p}_*.deb ../qemu; done
for p in $GUEST; do dpkg -x ${p}_*.deb ../guestroot; done
dpkg -x ${K61}_*.deb ../k61; dpkg -x ${K612}_*.deb ../k612; dpkg -x xen-hypervisor-4.17-amd64_*.deb ../xen
cd ..
zcat xen/boot/xen-4.17-amd64.gz >build/xen
gcc -O2 -static -o build/wl tools/wl.c; gcc -O2 -static -o build/true_s tools/true_s.c
for p in thrfork gcheap spawner; do gcc -O2 -static -pthread -o build/$p tools/apps/$p.c; done
head -c 262144 build/wl >tools/apps/sample   # what xz is to compress
