package bypass

var meaning []bypass
