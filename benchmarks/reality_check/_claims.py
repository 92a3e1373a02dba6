"""What each method's paper says that it gains, in a sentence, beside which its results here are set."""

CLAIMS = {
    "sgd": "A heavy ball crosses narrow valleys in steps that grow with the root of their condition number.",
    "adam": "Steps scaled by averages of the gradient's square need little tuning and suit sparse and noisy gradients.",
    "adamw": "Decay that is decoupled from the gradient generalizes better than Adam's, and lr and decay tune apart.",
    "adabelief": "As fast as Adam while generalizing as SGD: ImageNet ResNet-18 70.1 %, where AdamW has 67.9 %.",
    "adamp": "Small gains over AdamW on 13 benchmarks, from not letting scale-invariant weights grow.",
    "sgdp": "Small gains over SGD with momentum on 13 benchmarks, from not letting scale-invariant weights grow.",
    "adan": "The accuracy of AdamW in about half of the epochs, on ViTs, ConvNeXt, ResNets and language models.",
    "ademamix": "A second, very slow average: a 1.3 B language model as good as AdamW's trained on 95 % more tokens.",
    "cadamw": "AdamW with a mask: up to 1.47 times fewer steps to the same loss on language models of 60 M to 1 B.",
    "clion": "Lion with a mask: 1.28 times fewer steps to the same loss on language models.",
    "cadan": "The cautious mask helps any momentum method; for Adan no figures are given.",
    "csgdm": "The cautious mask helps any momentum method; for SGD no figures are given.",
    "grams": "Better than Adam, Lion and their cautious forms on a 60 M language model and a wide ResNet.",
    "lion": "Up to 2 % more on ImageNet ViTs, up to 5 times less compute in pre-training, half of AdamW's memory.",
    "muon": "About half of AdamW's compute for the same loss of language models; records on CIFAR-10 and NanoGPT.",
    "tam": "Some tenths of a percent over SGD with momentum on image data; more where the data shift.",
    "adatam": "Torque-aware damping of Adam's momentum: as good as Adam or better.",
    "adatamw": "As good as AdamW or better in fine-tuning BERT; more where the data shift.",
}
