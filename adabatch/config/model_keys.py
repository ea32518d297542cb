"""The keys of networks and tasks; see `config.keys`, which these belong to."""

from ml_collections import ConfigDict


def add_models(c: ConfigDict) -> None:
  """Adds the tables of networks and tasks to the defaults."""
  # The network, and the table of each.
  c.model = ConfigDict()
  # 'mlp', 'lenet', 'strided_cnn', 'pooled_cnn', 'simple_cnn', 'cifar_resnet',
  # 'resnet', 'wide_resnet', 'densenet', 'vgg', 'transformer', 'lstm', or one
  # that the config registers.
  c.model.name = 'mlp'
  # Of the computation, not of the parameters: 'float32', 'bfloat16'.
  c.model.dtype = 'float32'
  # Of products of float32: 'default', 'high', 'highest', as JAX has them.
  c.model.precision = 'default'
  c.model.mlp = ConfigDict()
  c.model.mlp.hidden_sizes = (128,)  # units of each hidden layer
  c.model.lenet = ConfigDict()
  c.model.strided_cnn = ConfigDict()
  # Channels of each convolution of 3x3, with stride 2.
  c.model.strided_cnn.channels = (16, 32)
  c.model.strided_cnn.hidden_size = 128  # units of the dense layer
  # Examples that BatchNorm normalises together; 0: no BatchNorm.
  c.model.strided_cnn.batch_norm_group = 0
  c.model.pooled_cnn = ConfigDict()
  # Channels of the convolutions of 5x5, 5x5 and 3x3.
  c.model.pooled_cnn.channels = (30, 60, 100)
  c.model.pooled_cnn.hidden_size = 100  # units of the dense layer
  c.model.simple_cnn = ConfigDict()
  # Channels of the two convolutions of 5x5.
  c.model.simple_cnn.channels = (32, 64)
  c.model.simple_cnn.hidden_size = 1024  # units of the dense layer
  c.model.cifar_resnet = ConfigDict()
  c.model.cifar_resnet.depth = 20  # layers, 6n + 2: 8, 20, 32, 44, 56
  c.model.cifar_resnet.width = 16  # channels of the first stage
  # Examples that BatchNorm normalises together; 0: no BatchNorm.
  c.model.cifar_resnet.batch_norm_group = 32
  c.model.resnet = ConfigDict()
  c.model.resnet.depth = 50  # layers: 10, 18, 34, 50, 101
  c.model.resnet.width = 64  # channels of the stem
  # The first layer: 'imagenet' (7x7 and pooling), 'cifar' (3x3).
  c.model.resnet.stem = 'imagenet'
  # Whether the scale of each block's last BatchNorm is 0 at first.
  c.model.resnet.zero_scale = True
  # Examples that BatchNorm normalises together; 0: no BatchNorm.
  c.model.resnet.batch_norm_group = 32
  c.model.wide_resnet = ConfigDict()
  c.model.wide_resnet.depth = 16  # layers, 6n + 4
  # Channels of the first stage, in units of model.wide_resnet.width.
  c.model.wide_resnet.widen_factor = 4
  c.model.wide_resnet.width = 16  # channels of the stem
  # Of dropout between a block's convolutions.
  c.model.wide_resnet.dropout_rate = 0.0
  # Examples that BatchNorm normalises together; 0: no BatchNorm.
  c.model.wide_resnet.batch_norm_group = 32
  c.model.densenet = ConfigDict()
  c.model.densenet.depth = 40  # layers, 3n + 4
  c.model.densenet.growth_rate = 12  # channels that each layer adds
  c.model.densenet.width = 16  # channels of the stem
  c.model.densenet.dropout_rate = 0.0  # of dropout after each convolution
  # Examples that BatchNorm normalises together; 0: no BatchNorm.
  c.model.densenet.batch_norm_group = 32
  c.model.vgg = ConfigDict()
  c.model.vgg.depth = 11  # layers: 11, 16
  c.model.vgg.width = 64  # channels of the first stage
  c.model.vgg.dense_size = 4096  # units of the two hidden dense layers
  c.model.vgg.dropout_rate = 0.5  # of dropout after the hidden dense layers
  # Examples that BatchNorm normalises together; 0: no BatchNorm.
  c.model.vgg.batch_norm_group = 0
  c.model.transformer = ConfigDict()
  # Layers of attention and feed-forward.
  c.model.transformer.num_layers = 6
  # Entries of embeddings and of the residual stream.
  c.model.transformer.model_dim = 512
  c.model.transformer.num_heads = 8  # heads of attention
  c.model.transformer.hidden_dim = 2048  # units of the feed-forward layers
  # Of dropout of embeddings and layers' results.
  c.model.transformer.dropout_rate = 0.1
  # Whether the output layer has the weights of the embedding.
  c.model.transformer.tied_embeddings = True
  c.model.lstm = ConfigDict()
  c.model.lstm.num_layers = 2  # layers of LSTM
  c.model.lstm.hidden_size = 1024  # entries of the cells
  c.model.lstm.embedding_size = 512  # entries of a token's vector
  # Entries of the states; 0: as many as of the cells, without a projection.
  c.model.lstm.projection_size = 0
  # Of dropout of embeddings and layers' results.
  c.model.lstm.dropout_rate = 0.1
  # Whether the output layer has the weights of the embedding.
  c.model.lstm.tied_embeddings = False

  # What the network is trained for, and the table of each.
  c.task = ConfigDict()
  # 'classification', 'regression', 'multi_label', 'language_modelling', or one
  # that the config registers.
  c.task.name = 'classification'
  # Share of the target that is spread over all classes or tokens, in the
  # training loss only.
  c.task.label_smoothing = 0.0
  c.task.regression = ConfigDict()
  c.task.regression.loss = 'squared'  # or 'absolute'
