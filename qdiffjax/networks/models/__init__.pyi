from .adapters import Adapted as Adapted
from .adapters import from_equinox as from_equinox
from .adapters import from_linen as from_linen
from .adapters import from_nnx as from_nnx
from .autoencoder import Autoencoder as Autoencoder
from .dit import DiT as DiT
from .unet import UNet as UNet
from .video import VideoDiT as VideoDiT
