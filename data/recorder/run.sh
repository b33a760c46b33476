#!/bin/bash
# run.sh KERNEL(k61|k612) VCPUS RUNS OUTDIR [mkinitramfs options]: one boot, all lines of RUNS recorded; disk image in OUTDIR/disk.img
set -e
cd "$(dirname "$0")/.."
K=$1; N=$2; RUNS=$3; OUT=$4; shift 4
MEM=${MEM:-4608}; DOM0=${DOM0:-3600}
mkdir -p $OUT; cp $RUNS $OUT/runs
python3 tools/mkinitramfs.py --kernel $K --runs $RUNS --out $OUT/initramfs.gz "$@"
[ -f build/xen ] || zcat xen/boot/xen-4.17-amd64.gz >build/xen
rm -f $OUT/disk.img; truncate -s 8G $OUT/disk.img
V=$(ls $K/boot/vmlinuz-*)
export LD_LIBRARY_PATH=$PWD/qemu/usr/lib/x86_64-linux-gnu:$PWD/qemu/lib/x86_64-linux-gnu
XEN="console=com1 com1=115200 dom0_mem=${DOM0}M,max:${DOM0}M dom0_max_vcpus=$N dom0_vcpus_pin loglvl=warning $XENARGS"
LINUX="nokaslr transparent_hugepage=never nowatchdog audit=0 console=hvc0 norandmaps quiet $LINUXARGS"
printf '%s\n%s\n' "$XEN" "$LINUX" >$OUT/cmdlines
exec qemu/usr/bin/qemu-system-x86_64 -accel tcg -m $MEM -smp $N -L qemu/usr/share/seabios -L qemu/usr/share/qemu \
  -display none -nodefaults -no-reboot -serial file:$OUT/serial.log -monitor none \
  -kernel build/xen -append "$XEN" -initrd "$V $LINUX,$OUT/initramfs.gz" \
  -drive file=$OUT/disk.img,format=raw,if=none,id=d,cache=writeback -device virtio-blk-pci,drive=d
