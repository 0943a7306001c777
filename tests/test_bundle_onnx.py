"The large backbones as ONNX: minutes of exporting."

import numpy as np, pytest, torch
from smlxray.bundle import Bundle, export_onnx
from smlxray.config import load_settings
from smlxray.siamese import SiameseNet

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('backbone', ['resnet18', 'resnet50', 'densenet121'])
def test_onnx_agrees_with_the_network(backbone, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    torch.manual_seed(0)
    b = Bundle(
        SiameseNet(backbone, 64), load_settings('tiny', backbone=backbone, image_size=224), {}, {}
    )
    assert export_onnx(b, tmp_path / 'net.onnx') <= 1e-4
    x = torch.randint(0, 256, (3, 1, 224, 224), dtype=torch.uint8)
    y = onnxruntime.InferenceSession(str(tmp_path / 'net.onnx')).run(
        None, dict(image=((x.float() - 127.5) / 63.75).numpy())
    )[0]
    assert np.abs(y - b.embed(x).numpy()).max() < 1e-4
