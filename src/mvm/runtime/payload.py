"""A guest of a few instructions: it does what a kernel does first and says by its exit status that it got through.

Opening /dev/kvm proves little: there are hosts whose KVM emulates most of a kernel's instructions, stumbles over some
of them and is slower than QEMU's own emulation. So this guest enters long mode with pages, uses `lock cmpxchg16b`
(which KVM's emulator does not know) and SSE, runs a loop of 20 million rounds and reloads its page tables 200 times.
It leaves through QEMU's device isa-debug-exit with status 33.

The source, for GNU as (`-m64`, text at 0x100000, zeroed memory from 0x101000 for three page tables and a stack):

    start:  .code32
            mov $pd, %eax;   or $3, %eax;  mov %eax, pdpt
            mov $pdpt, %eax; or $3, %eax;  mov %eax, pml4
            movl $0x83, pd                              # the first 2 MiB
            mov %cr4, %eax;  or $0x620, %eax; mov %eax, %cr4    # PAE, OSFXSR, OSXMMEXCPT
            mov $pml4, %eax; mov %eax, %cr3
            mov $0xc0000080, %ecx; rdmsr; or $0x100, %eax; wrmsr    # EFER.LME
            mov %cr0, %eax;  and $~4, %eax; or $0x80000001, %eax; mov %eax, %cr0
            lgdt gdtr; ljmp $8, $long
    long:   .code64
            mov $16, %eax; mov %eax, %ds; mov %eax, %ss; mov $stack, %esp
            xor %eax, %eax; xor %edx, %edx; mov $1, %ebx; xor %ecx, %ecx
            lock cmpxchg16b cell
            movdqu cell, %xmm0; paddq %xmm0, %xmm0
            mov $20000000, %ecx
    1:      push %rcx; pop %rcx; dec %ecx; jnz 1b
            mov $200, %ecx; mov %cr3, %rax
    2:      mov %rax, %cr3; dec %ecx; jnz 2b
            mov $0x10, %eax; mov $0xf4, %edx; out %eax, %dx
    3:      hlt; jmp 3b
    gdt:    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
    gdtr:   .word 23; .long gdt
    cell:   .quad 0, 0
"""

from __future__ import annotations

import struct

EXIT_PORT = 0xF4
EXIT_STATUS = 0x10 << 1 | 1
"""QEMU ends with `value << 1 | 1` of what was written to the exit port."""

ADDRESS = 0x100000
"""Where the guest begins."""
MEMORY = 0x4100
TEXT = bytes.fromhex(
    "b80030100083c803a300201000b80020100083c803a300101000c7050030"
    "1000830000000f20e00d200600000f22e0b8001010000f22d8b9800000c0"
    "0f320d000100000f300f20c083e0fb0d010000800f22c00f0115d8001000"
    "ea610010000800b8100000008ed88ed0bc0041100031c031d2bb01000000"
    "31c9f0480fc70c25e0001000f30f6f0425e0001000660fd4c0b9002d3101"
    "5159ffc975fab9c80000000f20d80f22d8ffc975f9b810000000baf40000"
    "00eff4ebfd0f1f80000000000000000000000000ffff0000009baf00ffff"
    "00000093cf001700c0001000669000000000000000000000000000000000"
)
_PVH_ENTRY = 18


def elf() -> bytes:
    """The guest as an ELF image that QEMU boots by its PVH note."""
    note = struct.pack("<III4sQ", 4, 8, _PVH_ENTRY, b"Xen\0", ADDRESS)
    headers = 64 + 2 * 56
    text_at, note_at = headers, headers + len(TEXT)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(2, 62, 1, ADDRESS, 64, 0, 0, 64, 56, 2, 0, 0, 0),
    )
    load = struct.pack("<IIQQQQQQ", 1, 7, text_at, ADDRESS, ADDRESS, len(TEXT), MEMORY, 16)
    notes = struct.pack("<IIQQQQQQ", 4, 4, note_at, 0, 0, len(note), len(note), 4)
    return header + load + notes + TEXT + note
