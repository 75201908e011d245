import { render } from 'preact';
import './styles/base.css';

const app = document.getElementById('app');
if (app) render(<p>ckptd</p>, app);
