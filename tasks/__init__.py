"""The stages of maskmill and what they are made of. Prefect is not known here.

Reading order:
    masking      equation (1): which tokens are hidden
    objective    equations (3)-(5): gather at 𝓜, head, cross-entropy
    encoder      equation (2): a stock ModernBERT
    artifacts    how stages meet: manifests on disk
    corpus, vocabulary, shards, pretrain, evaluate, registry     the six stages, in the order of the flow
"""
