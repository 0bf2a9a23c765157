/* Empty: bcc includes it, and nothing that twctl compiles needs what the kernel keeps here. */
