# The relay: what it does is told in relay.rs. GNU assembler; relay.rs says how its bytes are made.
#
# rbx parameters     rbp this CPU     r8 interrupts that it got     r12 the next CPU, as the APIC's register has it
        .intel_syntax noprefix
        .code64

        .set    PARAMETERS, 0x201000    # CPUs
        .set    PML4, 0x9000            # made by the monitor, as is the GDT
        .set    START_PAGE, 0x30        # where other CPUs start, in pages
        .set    IDT, 0x210000
        .set    WAITING, 0x220000       # how many CPUs wait for an interrupt
        .set    STACKS, 0x230000
        .set    APIC, 0xfee00000
        .set    VECTOR, 0x50

start:  mov     rbx, PARAMETERS
        mov     rsp, STACKS + 0x1000
        xor     ebp, ebp
        lea     rax, [rip + caught]
        mov     edi, IDT + VECTOR * 16
        mov     [rdi], ax
        shr     eax, 16
        mov     [rdi + 6], ax
        mov     word ptr [rdi + 2], 0x10
        mov     word ptr [rdi + 4], 0x8e00
        # Start the other CPUs where `other` is copied to.
        lea     rsi, [rip + other]
        mov     edi, START_PAGE << 12
        mov     ecx, offset others_end - other
        rep movsb
        mov     edi, APIC
        mov     dword ptr [rdi + 0x300], 0xc4500
        mov     dword ptr [rdi + 0x300], 0xc4600 + START_PAGE
        call    get_ready
        mov     edx, WAITING
1:      pause
        mov     eax, [rdx]
        cmp     eax, [rbx]
        jne     1b
        call    pass_on
        jmp     wait

        .code16
other:  cli
        lgdt    cs:[gdt - other]
        mov     eax, cr4
        or      eax, 0x20               # PAE
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
        call    get_ready
wait:   sti
1:      pause
        jmp     1b

get_ready:
        mov     edi, APIC
        mov     dword ptr [rdi + 0xf0], 0x1ff
        lidt    [rip + idt]
        xor     r8d, r8d
        lea     r12d, [rbp + 1]
        cmp     r12d, [rbx]
        jb      1f
        xor     r12d, r12d
1:      shl     r12d, 24
        mov     edx, WAITING
        lock inc dword ptr [rdx]
        ret

idt:    .word   256 * 16 - 1
        .quad   IDT

# The interrupt: it goes on to the next CPU. Nothing else is held in the registers that this changes.
caught: mov     edi, APIC
        mov     dword ptr [rdi + 0xb0], 0
        inc     r8
        test    r8b, 3
        jnz     1f
        mov     eax, ebp
        mov     dx, 0x3f8
        out     dx, al
1:      call    pass_on
        iretq

pass_on:
        mov     edi, APIC
        mov     [rdi + 0x310], r12d
        mov     dword ptr [rdi + 0x300], 0x4000 + VECTOR
        ret
