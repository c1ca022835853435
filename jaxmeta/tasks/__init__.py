"""What is learned from: distributions over tasks."""

from jaxmeta.tasks import splits
from jaxmeta.tasks.cifar import cifar_fs, fc100, load_cifar100
from jaxmeta.tasks.few_shot import few_shot
    "fixed",
    "linear",
    "load_cifar100",
