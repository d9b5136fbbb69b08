/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From QEMU's multiboot loader (-kernel), and from a start-up IPI, to 64-bit C: flat segments, the first 32 GiB mapped one to one
 * by 2 MiB pages. The first processor goes on in guest_start(), every other one in guest_cpu().
 */
#define CODE64		0x08
#define DATA		0x10
#define CODE32		0x18
#define NR_PD		32			/* GiB mapped */
#define STACK_SHIFT	13

	.section .multiboot, "a"
	.balign	4
	.long	0x1badb002, 2, -(0x1badb002 + 2)	/* flags: pass the memory map */

	.bss
	.balign	4096
pml4:	.skip	4096
pdpt:	.skip	4096
pd:	.skip	4096 * NR_PD
stacks:	.skip	16 << STACK_SHIFT
cpus:	.skip	4

	.section .rodata
	.balign	8
gdt:	.quad	0
	.quad	0x00af9a000000ffff
	.quad	0x00cf92000000ffff
	.quad	0x00cf9a000000ffff
gdtr:	.word	gdtr - gdt - 1
	.long	gdt

	.text
	.code32
	.globl	_start
_start:	cli
	cld
	lgdt	gdtr
	ljmp	$CODE32, $1f
1:	mov	$DATA, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	movl	$pdpt + 3, pml4
	mov	$pdpt, %edi
	mov	$pd + 3, %eax
	mov	$NR_PD, %ecx
2:	mov	%eax, (%edi)
	add	$4096, %eax
	add	$8, %edi
	loop	2b
	mov	$pd, %edi
	mov	$0x83, %eax			/* present, writable, 2 MiB */
	xor	%edx, %edx
	mov	$NR_PD * 512, %ecx
3:	mov	%eax, (%edi)
	mov	%edx, 4(%edi)
	add	$2 << 20, %eax
	adc	$0, %edx
	add	$8, %edi
	loop	3b
	mov	%ebx, %esi			/* multiboot information; 0 on other processors */

enter_long_mode:
	mov	$pml4, %eax
	mov	%eax, %cr3
	mov	%cr4, %eax
	or	$0x20, %eax			/* PAE */
	mov	%eax, %cr4
	mov	$0xc0000080, %ecx		/* EFER */
	rdmsr
	or	$0x100, %eax			/* LME */
	wrmsr
	mov	%cr0, %eax
	and	$0x9fffffff, %eax		/* caches on, as INIT leaves them off */
	or	$0x80000001, %eax		/* PG, PE */
	mov	%eax, %cr0
	ljmp	$CODE64, $1f
	.code64
1:	mov	$1, %edi
	lock xadd %edi, cpus			/* this processor's number, in order of arrival */
	lea	1(%rdi), %eax
	shl	$STACK_SHIFT, %rax
	lea	stacks(%rax), %rsp
	test	%esi, %esi
	jz	2f
	mov	%esi, %edi
	call	guest_start
2:	call	guest_cpu
3:	hlt
	jmp	3b

	/* Copied below 1 MiB by start_cpus(), at a 4 KiB boundary which the start-up IPI names. */
	.code16
	.globl	ap_start, ap_end
ap_start:
	cli
	mov	%cs, %ax
	mov	%ax, %ds
	lgdtl	ap_gdtr - ap_start
	mov	%cr0, %eax
	or	$1, %al
	mov	%eax, %cr0
	ljmpl	$CODE32, $ap_protected
ap_gdtr:
	.word	gdtr - gdt - 1
	.long	gdt
ap_end:

	.code32
ap_protected:
	mov	$DATA, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	xor	%esi, %esi
	jmp	enter_long_mode

	.section .note.GNU-stack, "", @progbits
