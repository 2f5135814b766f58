"""Networks: 3-D operators, the U-Net, the projector."""
