"""Networks that nnU-Net v2 trained, brought into this form."""
