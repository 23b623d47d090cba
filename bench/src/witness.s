# The witness: what it does is told in witness.rs. GNU assembler; witness.rs says how its bytes are made.
#
# rbx parameters     r8  number of the next page     r9  that page      rsi laps
# rbp this CPU       r13 first number as this twin   r10 end of pages
# r14 this twin      r15 number of the next record   r11 first page
#                    r12 first number as this twin
        .intel_syntax noprefix
        .code64

        .set    PARAMETERS, 0x201000    # CPUs, pages of each, first page, records
        .set    GENERATION, 0xf0000     # VMGENID: which twin this is
        .set    PML4, 0x9000            # made by the monitor, as is the GDT
        .set    START_PAGE, 0x30        # where other CPUs start, in pages
        .set    STACKS, 0x230000
        .set    SCRATCH, 0x240000       # 64 bytes for each CPU
        .set    CLOCKS, 0x241000        # 64 bytes for each CPU
        .set    APIC, 0xfee00000
        .set    IOAPIC, 0xfec00000
        .set    BLOCK, 0xd0001000
        .set    VSOCK, 0xd0002000
        .set    RNG, 0xd0003000
        .set    BALLOON, 0xd0004000
        .set    BLOCK_RINGS, 0x210000   # descriptors; available + 0x400; used + 0x800
        .set    RECEIVE_RINGS, 0x211000
        .set    SEND_RINGS, 0x212000
        .set    EVENT_RINGS, 0x213000
        .set    RANDOM_RINGS, 0x214000
        .set    REPORT_RINGS, 0x215000
        .set    HEADER, 0x220000        # type, sector; status + 16
        .set    DATA, 0x221000
        .set    RECEIVED, 0x222000      # 16 buffers of 64 bytes
        .set    PACKET, 0x223000
        .set    EVENTS, 0x224000        # 16 buffers of 64 bytes
        .set    RANDOM, 0x226000        # 16 buffers of 64 bytes
        .set    SEEN, 0x225000          # how many packets were looked at
        .set    UNUSED, 0x227000        # 16 buffers of 64 bytes, which are no page

start:  mov     rbx, PARAMETERS
        mov     rax, cr4
        or      eax, 0x600              # SSE
        mov     cr4, rax
        mov     rsp, STACKS + 0x1000
        xor     ebp, ebp
        # The timer of a PC, at 256 Hz, and two interrupts through the I/O APIC to the first CPU.
        mov     al, 0x34
        out     0x43, al
        mov     al, 0x34
        out     0x40, al
        mov     al, 0x12
        out     0x40, al
        mov     edi, IOAPIC
        mov     dword ptr [rdi], 0x10 + 2 * 16
        mov     dword ptr [rdi + 0x10], 0x60
        mov     dword ptr [rdi], 0x10 + 2 * 17
        mov     dword ptr [rdi + 0x10], 0x61
        # A serial port of 8 bits with a scratch register, whose interrupts are on.
        mov     dx, 0x3fb
        mov     al, 0x03
        out     dx, al
        mov     dx, 0x3ff
        mov     al, 0x5a
        out     dx, al
        mov     dx, 0x3f9
        mov     al, 0x02
        out     dx, al
        call    set_up_block
        call    set_up_vsock
        call    set_up_rng
        call    set_up_balloon
        # Start the other CPUs where `other` is copied to.
        lea     rsi, [rip + other]
        mov     edi, START_PAGE << 12
        mov     ecx, offset others_end - other
        rep movsb
        mov     edi, APIC
        mov     dword ptr [rdi + 0x300], 0xc4500
        mov     dword ptr [rdi + 0x300], 0xc4600 + START_PAGE
        jmp     begin

        .code16
other:  cli
        lgdt    cs:[gdt - other]
        mov     eax, cr4
        or      eax, 0x620              # PAE, SSE
        mov     cr4, eax
        mov     eax, PML4
        mov     cr3, eax
        mov     ecx, 0xc0000080         # EFER
        rdmsr
        or      eax, 0x100
        wrmsr
        mov     eax, cr0
        or      eax, 0x80000001
        mov     cr0, eax
        .byte   0x66, 0xea              # jmp far 0x10:there
        .long   0x200000 + there - start
        .word   0x10
gdt:    .word   31
        .long   0x500
others_end:

        .code64
there:  mov     eax, 0x18
        mov     ss, eax
        mov     ds, eax
        mov     es, eax
        mov     edi, APIC
        mov     ebp, [rdi + 0x20]
        shr     ebp, 24
        mov     esp, ebp
        shl     esp, 12
        add     esp, STACKS + 0x1000
        mov     rbx, PARAMETERS

begin:  call    dress
        mov     rax, [rbx + 8]
        shl     rax, 12
        mov     r11, rbp
        imul    r11, rax
        add     r11, [rbx + 16]
        mov     r10, r11
        add     r10, rax
        mov     r9, r11
        xor     r8d, r8d
        xor     r12d, r12d
        xor     r13d, r13d
        xor     r15d, r15d
        xor     esi, esi
        mov     edi, GENERATION
        mov     r14, [rdi]
        mov     eax, ebp
        or      al, 0x80                # READY
        call    say

lap:    call    page
        cmp     r9, r11                 # It has wrapped.
        jne     lap
        test    ebp, ebp
        jnz     1f
        cmp     qword ptr [rbx + 24], 0
        je      1f
        call    record
1:      lea     rax, [rbp + 1]
        cmp     rax, [rbx]
        jne     2f
        call    packet
2:      mov     eax, esi
        and     eax, 15
        mov     ecx, ebp
        shl     ecx, 4
        or      eax, ecx
        call    say
        inc     rsi
        jmp     lap

# Who this is may change at any instant. What was written before then is another's, what comes now is its own.
whoami: mov     edi, GENERATION
        mov     rax, [rdi]
        cmp     rax, r14
        je      1f
        mov     r14, rax
        mov     r13, r8
        mov     r12, r15
1:      ret

# Looks at the next page, and writes it.
page:   call    whoami
        # The SSE register holds the number before.
        mov     edi, ebp
        shl     edi, 6
        add     edi, SCRATCH
        movdqu  [rdi], xmm0
        mov     al, 0                   # what is wrong
        cmp     [rdi], r8
        jne     broken
        mov     rcx, r8
        sub     rcx, [rbx + 8]
        jb      1f                      # the first lap
        mov     al, 1
        cmp     [r9], rcx
        jne     broken
        mov     rdx, [r9 + 8]
        mov     al, 2
        cmp     rcx, r13
        call    whose
1:      mov     [r9], r8
        mov     [r9 + 8], r14
        inc     r8
        mov     [rdi], r8
        movdqu  xmm0, [rdi]
        add     r9, 4096
        cmp     r9, r10
        jb      2f
        mov     r9, r11
2:      ret

# With the flags of a number compared to the first as this twin: rdx must be this twin, or must not.
whose:  jae     1f
        cmp     rdx, r14
        je      broken
        ret
1:      cmp     rdx, r14
        jne     broken
        ret

# Looks at the record written last and at the one that is to be overwritten, and overwrites it.
record: call    whoami
        mov     rcx, r15
        sub     rcx, 1
        jb      1f
        call    look
1:      mov     rcx, r15
        sub     rcx, [rbx + 24]
        jb      2f
        call    look
2:      mov     edi, DATA
        mov     [rdi], r15
        mov     [rdi + 8], r14
        mov     [rdi + 4080], r15
        mov     [rdi + 4088], r14
        mov     rcx, r15
        mov     eax, 1
        call    disk
        inc     r15
        ret

# Reads record rcx and checks it.
look:   push    rcx
        xor     eax, eax
        call    disk
        pop     rcx
        mov     edi, DATA
        mov     al, 3
        cmp     [rdi], rcx
        jne     broken
        cmp     [rdi + 4080], rcx
        jne     broken
        mov     rdx, [rdi + 8]
        cmp     [rdi + 4088], rdx
        jne     broken
        mov     al, 4
        cmp     rcx, r12
        jmp     whose

# Reads (eax = 0) or writes (1) DATA at the place of record rcx.
disk:   mov     edi, HEADER
        mov     [rdi], rax
        push    rax
        mov     rax, rcx
        xor     edx, edx
        div     qword ptr [rbx + 24]
        shl     rdx, 3                  # 8 sectors a record
        mov     [rdi + 8], rdx
        mov     byte ptr [rdi + 16], 0xff
        pop     rax
        # Descriptor 1 is written by the device when it reads.
        xor     eax, 1
        add     eax, eax
        or      eax, 1
        mov     edi, BLOCK_RINGS
        mov     [rdi + 16 + 12], ax
        xor     eax, eax
        call    offer
        mov     ecx, BLOCK
        mov     dword ptr [rcx + 0x50], 0
1:      pause
        mov     ax, [rdi + 0x402]
        cmp     [rdi + 0x802], ax
        jne     1b
        mov     edi, HEADER
        mov     al, 5
        cmp     byte ptr [rdi + 16], 0
        jne     broken
        ret

# Makes descriptor eax available in the rings at rdi.
offer:  movzx   ecx, word ptr [rdi + 0x402]
        mov     edx, ecx
        and     edx, 15
        mov     [rdi + rdx * 2 + 0x404], ax
        inc     ecx
        mov     [rdi + 0x402], cx
        ret

# Gives buffers back that the host has filled, asks for a connection that the host refuses, and waits until it has.
packet: mov     edi, RECEIVE_RINGS
        mov     edx, SEEN
        movzx   ecx, word ptr [rdx]
1:      cmp     [rdi + 0x802], cx
        je      2f
        mov     eax, ecx
        and     eax, 15
        mov     eax, [rdi + rax * 8 + 0x804]
        push    rcx
        call    offer
        pop     rcx
        inc     ecx
        jmp     1b
2:      mov     edx, SEEN
        mov     [rdx], cx
        mov     edi, VSOCK
        mov     dword ptr [rdi + 0x50], 0
        mov     edi, PACKET
        mov     [rdi + 16], esi         # Another port in every lap.
        mov     edi, SEND_RINGS
        xor     eax, eax
        call    offer
        mov     ecx, VSOCK
        mov     dword ptr [rcx + 0x50], 1
3:      pause
        mov     ax, [rdi + 0x402]
        cmp     [rdi + 0x802], ax
        jne     3b
        mov     edi, RECEIVE_RINGS
        mov     edx, SEEN
        mov     ax, [rdx]
4:      pause
        cmp     [rdi + 0x802], ax
        je      4b
        ret

say:    mov     dx, 0x3f8
        out     dx, al
        ret

# al says what is wrong.
broken: mov     ecx, ebp
        shl     ecx, 3
        or      eax, ecx
        or      al, 0xc0
        call    say
1:      hlt
        jmp     1b

# Gives this CPU what a CPU has by and by: a timer that runs, an interrupt that waits, registers of all kinds.
dress:  mov     edi, APIC
        mov     dword ptr [rdi + 0xf0], 0x1ff
        mov     dword ptr [rdi + 0x320], 0x20040
        mov     dword ptr [rdi + 0x3e0], 0xb
        mov     dword ptr [rdi + 0x380], 0x7fffffff
        mov     dword ptr [rdi + 0x300], 0x40051
        lea     r8, [rip + msrs]
        mov     edx, 0
1:      mov     ecx, [r8]
        mov     eax, [r8 + 4]
        add     eax, ebp
        wrmsr
        add     r8, 8
        cmp     dword ptr [r8], 0
        jne     1b
        mov     ecx, 0x4b564d01         # KVM's clock
        mov     eax, ebp
        shl     eax, 6
        add     eax, CLOCKS + 1
        wrmsr
        lea     rax, [rbp + 0x200000]
        mov     dr0, rax
        mov     edi, ebp
        shl     edi, 6
        add     edi, SCRATCH
        xor     eax, eax
        mov     [rdi], rax
        mov     dword ptr [rdi + 8], 0x12345678
        movdqu  xmm0, [rdi]
        ret

msrs:   .long   0x3b, 0x1000            # TSC_ADJUST
        .long   0x174, 0x18             # SYSENTER_CS
        .long   0x175, 0x5000           # SYSENTER_ESP
        .long   0x176, 0x6000           # SYSENTER_EIP
        .long   0xc0000081, 0x7000      # STAR
        .long   0xc0000082, 0x8000      # LSTAR
        .long   0xc0000084, 0x200       # FMASK
        .long   0xc0000102, 0x9000      # KERNEL_GS_BASE
        .long   0

set_up_block:
        cmp     qword ptr [rbx + 24], 0
        je      1f
        mov     edi, BLOCK
        mov     eax, 1 << 9             # FLUSH: writes need not last.
        call    negotiate
        xor     eax, eax
        mov     ecx, BLOCK_RINGS
        call    set_up_queue
        mov     dword ptr [rdi + 0x70], 15
        mov     edi, BLOCK_RINGS
        mov     dword ptr [rdi], HEADER
        mov     dword ptr [rdi + 8], 16
        mov     dword ptr [rdi + 12], 0x10001
        mov     dword ptr [rdi + 16], DATA
        mov     dword ptr [rdi + 24], 4096
        mov     dword ptr [rdi + 28], 0x20001
        mov     dword ptr [rdi + 32], HEADER + 16
        mov     dword ptr [rdi + 40], 1
        mov     dword ptr [rdi + 44], 2
1:      ret

set_up_vsock:
        mov     edi, VSOCK
        xor     eax, eax
        call    negotiate
        xor     eax, eax
        mov     ecx, RECEIVE_RINGS
        call    set_up_queue
        mov     eax, 1
        mov     ecx, SEND_RINGS
        call    set_up_queue
        mov     eax, 2
        mov     ecx, EVENT_RINGS
        call    set_up_queue
        mov     edi, RECEIVE_RINGS
        mov     esi, RECEIVED
        call    offer_all
        mov     edi, EVENT_RINGS
        mov     esi, EVENTS
        call    offer_all
        mov     edi, SEND_RINGS
        mov     dword ptr [rdi], PACKET
        mov     dword ptr [rdi + 8], 44
        mov     edi, PACKET
        mov     dword ptr [rdi], 3      # from the guest
        mov     dword ptr [rdi + 8], 2  # to the host
        mov     dword ptr [rdi + 20], 7 # where nobody listens
        mov     dword ptr [rdi + 28], 0x10001   # stream, REQUEST
        mov     edi, VSOCK
        mov     dword ptr [rdi + 0x70], 15
        ret

set_up_rng:
        mov     edi, RNG
        xor     eax, eax
        call    negotiate
        xor     eax, eax
        mov     ecx, RANDOM_RINGS
        call    set_up_queue
        mov     edi, RANDOM_RINGS
        mov     esi, RANDOM
        call    offer_all
        mov     edi, RNG
        mov     dword ptr [rdi + 0x70], 15
        ret

set_up_balloon:
        mov     edi, BALLOON
        mov     eax, 1 << 5             # It reports what is free.
        call    negotiate
        mov     eax, 4
        mov     ecx, REPORT_RINGS
        call    set_up_queue
        mov     edi, REPORT_RINGS
        mov     esi, UNUSED
        call    offer_all
        mov     edi, BALLOON
        mov     dword ptr [rdi + 0x70], 15
        ret

# 16 buffers of 64 bytes from rsi on, for the device to write to.
offer_all:
        xor     eax, eax
1:      mov     edx, eax
        shl     edx, 4
        mov     [rdi + rdx], rsi
        mov     dword ptr [rdi + rdx + 8], 64
        mov     dword ptr [rdi + rdx + 12], 2
        call    offer
        add     rsi, 64
        inc     eax
        cmp     eax, 16
        jb      1b
        ret

# The handshake with the device at rdi, of which it takes the features eax and version 1.
negotiate:
        mov     dword ptr [rdi + 0x70], 0
        mov     dword ptr [rdi + 0x70], 3
        mov     dword ptr [rdi + 0x24], 0
        mov     dword ptr [rdi + 0x20], eax
        mov     dword ptr [rdi + 0x24], 1
        mov     dword ptr [rdi + 0x20], 1
        mov     dword ptr [rdi + 0x70], 11
        ret

# Queue eax of the device at rdi, with rings at ecx and 16 descriptors.
set_up_queue:
        mov     [rdi + 0x30], eax
        mov     dword ptr [rdi + 0x38], 16
        mov     [rdi + 0x80], ecx
        mov     dword ptr [rdi + 0x84], 0
        add     ecx, 0x400
        mov     [rdi + 0x90], ecx
        mov     dword ptr [rdi + 0x94], 0
        add     ecx, 0x400
        mov     [rdi + 0xa0], ecx
        mov     dword ptr [rdi + 0xa4], 0
        mov     dword ptr [rdi + 0x44], 1
        ret
