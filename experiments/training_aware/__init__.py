"""What training while rounding gains over cures after training, and which errors to weigh."""
